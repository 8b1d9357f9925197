"""A worker, an engine or the router is killed under load: no client hangs, the rest is served, the dead come back."""

import os
import signal
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from service import Service, up

from penstock_client import Broken, Client, PenstockError

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.slow]
STREAMS = 16


def one_stream(address: str, number: int, began: Event, length: int = 120) -> tuple[str, int]:
    """(how it ended, tokens seen)"""
    seen = 0
    try:
        with Client(address) as client:
            prompt = f"Story {number}: once upon a time there was a mill. " * 4
            for delta in client.stream(prompt, max_tokens=length, ignore_eos=True, temperature=0, timeout_s=90):
                seen += len(delta.token_ids)
                if number < STREAMS // 2 and seen >= 6:  # past the prefill worker's token: decode runs
                    began.set()
    except Broken:
        return "aborted", seen
    except PenstockError as error:
        return type(error).__name__, seen
    return ("complete" if seen == length else "short"), seen


def ready_workers(service: Service) -> int:
    with Client(service.grpc) as client:
        return sum(w.state == "ready" for w in client.status().workers)


def wait_for_workers(service: Service, count: int, timeout_s: float = 150) -> float:
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        try:
            if ready_workers(service) >= count:
                return time.monotonic() - began
        except PenstockError:
            pass
        time.sleep(0.25)
    raise TimeoutError(f"{count} workers were not back after {timeout_s} s\n{service.log.read_text()[-4000:]}")


def kill_under_load(service: Service, victim: int) -> Counter[str]:
    began = Event()
    with ThreadPoolExecutor(STREAMS) as pool:
        early = [pool.submit(one_stream, service.grpc, i, began) for i in range(STREAMS // 2)]
        assert began.wait(30)
        late = [pool.submit(one_stream, service.grpc, i, began) for i in range(STREAMS // 2, STREAMS)]
        os.kill(victim, signal.SIGKILL)
        ends = [f.result(120) for f in early + late]
    return Counter(how for how, _ in ends)


@pytest.fixture(scope="module")
def mortal() -> "Service":  # type: ignore[misc]
    with up() as running:
        yield running


@pytest.mark.parametrize(("pool", "victim"), [("decode", "replica"), ("decode", "engine core"), ("prefill", "replica")])
def test_killing_a_worker_breaks_no_stream_and_it_comes_back(mortal: Service, pool: str, victim: str) -> None:
    wait_for_workers(mortal, 2)
    (pid,) = mortal.replicas(pool) if victim == "replica" else mortal.engine_cores(pool)
    ends = kill_under_load(mortal, pid)
    back_s = wait_for_workers(mortal, 2)
    print(f"\nkilled the {pool} {victim}: {dict(ends)}; both workers ready again after {back_s:.1f} s")
    assert ends == {"complete": STREAMS}
    with Client(mortal.grpc) as client:
        for _ in range(4):
            assert client.generate("After the fall", max_tokens=4, ignore_eos=True).finish_reason == "length"
    assert len(mortal.replicas()) == 2
    assert len(mortal.engine_cores()) == 2


def index_blocks(service: Service) -> float:
    with urllib.request.urlopen(f"http://{service.http}/metrics", timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("penstock_router_index_blocks"):
                return float(line.split()[-1])
    return -1


def test_a_killed_router_has_its_view_back_when_the_workers_redial(mortal: Service) -> None:
    wait_for_workers(mortal, 2)
    with Client(mortal.grpc) as client:
        client.generate("A prompt that fills some blocks. " * 40, max_tokens=4, ignore_eos=True)
    time.sleep(0.5)
    before = index_blocks(mortal)
    assert before > 0
    (router,) = mortal.routers()
    os.kill(router, signal.SIGKILL)
    began = time.monotonic()
    listening = None
    while time.monotonic() - began < 30:
        try:
            if listening is None:
                urllib.request.urlopen(f"http://{mortal.http}/healthz", timeout=1).close()
                listening = time.monotonic()
            if index_blocks(mortal) >= before and ready_workers(mortal) == 2:
                break
        except (OSError, PenstockError):
            pass
        time.sleep(0.05)
    assert listening is not None
    view_s = time.monotonic() - listening
    print(f"\nrouter listening {listening - began:.2f} s after its death, view back {view_s:.2f} s later: {before:.0f} blocks")
    assert view_s < 30
    with Client(mortal.grpc) as client:
        assert client.generate("Still here?", max_tokens=3, ignore_eos=True).finish_reason == "length"
