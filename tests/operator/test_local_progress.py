"""Lines for the person who waits, readiness, and restarts of the router."""

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_operator.local.progress import Joined, Narrator, Restarts, missing, restart


def serve(pool: str, message: str = "", **replicas: int) -> dict[str, object]:
    pools = {pool: {"state": "UPDATING", "message": message, "replicas": replicas}}
    return {"event": "serve", "state": "DEPLOYING", "message": "", "pools": pools}


def test_a_service_is_ready_when_every_pool_has_its_workers() -> None:
    expected = {"prefill": 1, "decode": 2}
    workers = [Joined("a", "prefill", "ready"), Joined("b", "decode", "ready"), Joined("c", "decode", "stale")]
    assert missing(expected, []) == expected
    assert missing(expected, workers) == {"decode": 1}
    assert missing(expected, [*workers, Joined("d", "decode", "ready")]) == {}


def test_a_wait_tells_what_each_pool_does_and_for_how_long() -> None:
    narrator = Narrator({"prefill": 1, "decode": 2}, 100.0)
    assert narrator.event({"event": "ray"}, 103.0) == ["[  3.0 s] Ray is up"]
    assert narrator.event({"event": "deployed"}, 104.0) == ["[  4.0 s] starting workers: 1 prefill, 2 decode"]
    assert narrator.event(serve("prefill", STARTING=1), 106.0) == []
    assert narrator.waiting({"prefill": 1, "decode": 2}, 108.0) == []
    (line,) = narrator.waiting({"prefill": 1, "decode": 2}, 111.0)
    assert line == "[ 11.0 s] prefill loads its engine (5 s); 2 decode waits for Ray to place it (7 s)"
    assert narrator.waiting({"decode": 1}, 112.0) == []


def test_a_worker_is_announced_once() -> None:
    narrator = Narrator({"prefill": 1}, 0.0)
    worker = Joined("prefill-0", "prefill", "ready")
    assert narrator.workers([worker], 2.0) == ["[  2.0 s] worker prefill-0 (prefill) is ready"]
    assert narrator.workers([worker], 3.0) == []


def test_a_failure_is_told_once_by_its_last_line() -> None:
    narrator = Narrator({"prefill": 1}, 0.0)
    event = serve("prefill", "The deployment failed to start 1 times\nTraceback\nValueError: no such model\n")
    assert narrator.event(event, 9.0) == ["[  9.0 s] prefill: ValueError: no such model"]
    assert narrator.event(event, 10.0) == []


def test_a_router_that_lived_long_is_restarted_at_once_and_a_short_lived_one_ever_later() -> None:
    history, waits, now = Restarts(), [], 0.0
    for _ in range(8):
        now += 1
        history, wait_s = restart(history, 0.1, now)
        waits.append(wait_s)
    assert waits == [0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert restart(history, 31.0, 60.0)[1] == 0.0


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_wait_is_never_above_five_seconds(lives: list[float]) -> None:
    history, now = Restarts(), 0.0
    for lived_s in lives:
        now += lived_s
        history, wait_s = restart(history, lived_s, now)
        assert 0 <= wait_s <= 5 and history.last_s == now
