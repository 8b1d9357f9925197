"""The legs machine under every sequence of events that a router, its workers and its clients can produce."""

from hypothesis import given, settings
from hypothesis import strategies as st
from leg_places import LEASE, MARGIN, WORKERS, placement

from penstock_policy.legs.budget import FLOOR, RATIO, RetryBudget
from penstock_policy.legs.machine import (
    MAX_ATTEMPTS_BEGUN,
    MAX_LOSSES,
    Abort,
    ClientGone,
    Fail,
    Finish,
    Finished,
    HandOff,
    KvRef,
    LegEnded,
    LegFailed,
    LegStalled,
    Move,
    Pick,
    Placed,
    RejectKv,
    Release,
    Start,
    Unplaced,
    WorkerDraining,
    WorkerLost,
    open_chain,
    progress,
    step,
)


def run(events, max_tokens=16, leg_id=100):
    """Feed events, or (leg_id, tokens) for progress; returns the chain and the actions of each step."""
    chain, actions = open_chain(20, max_tokens, MARGIN)
    steps = [actions]
    for event in events:
        if isinstance(event, tuple):
            chain = progress(chain, event[0], event[1], 0)
            continue
        chain, actions = step(chain, event, 0.0, leg_id, True)
        leg_id += 1
        steps.append(actions)
    return chain, steps


def started(actions):
    (leg,) = [action.leg for action in actions if isinstance(action, Start)]
    return leg


# -- scenarios


def test_a_colocated_answer_is_one_whole_leg():
    chain, steps = run([Placed(placement(2)), (100, 5), LegEnded(100, Finish.STOP)])
    leg = started(steps[1])
    assert (leg.kind, leg.slot, leg.max_leg_tokens, leg.kv, leg.hold) == ("whole", 2, 0, None, 10)
    assert steps[2] == (Finished(Finish.STOP), Release(10))
    assert chain.phase == "done" and chain.emitted == 5


def test_a_pair_prefills_one_token_and_decodes_from_its_kv():
    kv = KvRef(1, 20, LEASE)
    chain, steps = run([Placed(placement(2, 1)), (100, 1), LegEnded(100, Finish.LEG_END, kv)])
    first, second = started(steps[1]), started(steps[2])
    assert (first.kind, first.slot, first.max_leg_tokens, first.hold) == ("prefill", 1, 1, 11)
    assert (second.kind, second.slot, second.max_leg_tokens, second.hold) == ("decode", 2, 0, 10)
    assert second.kv is kv and steps[2][0] == Release(11)
    assert not chain.accepts(100) and chain.accepts(101)


def test_a_prefill_that_ends_the_answer_needs_no_decode():
    kv = KvRef(1, 20, LEASE)
    _, steps = run([Placed(placement(2, 1)), (100, 1), LegEnded(100, Finish.STOP, kv)])
    assert steps[2] == (RejectKv(1, kv), Finished(Finish.STOP), Release(10), Release(11))


def test_one_token_runs_whole_where_it_would_be_prefilled():
    _, steps = run([Placed(placement(2, 1))], max_tokens=1)
    leg = started(steps[1])
    assert (leg.kind, leg.slot, leg.max_leg_tokens) == ("whole", 1, 0)
    assert Release(10) in steps[1]


def test_kv_older_than_its_lease_less_the_margin_is_rejected_and_computed_again():
    kv = KvRef(1, 20, MARGIN)
    _, steps = run([Placed(placement(2, 1)), (100, 1), LegEnded(100, Finish.LEG_END, kv)])
    assert steps[2][0] == RejectKv(1, kv) and started(steps[2]).kv is None


def test_a_failed_transfer_is_computed_on_the_same_worker():
    kv = KvRef(1, 20, LEASE)
    events = [Placed(placement(2, 1)), (100, 1), LegEnded(100, Finish.LEG_END, kv), LegFailed(101, "transfer")]
    chain, steps = run(events)
    leg = started(steps[3])
    assert (leg.kind, leg.slot, leg.kv, leg.hold) == ("decode", 2, None, 10)
    assert steps[3][0] == RejectKv(1, kv) and chain.attempts == 1


def test_a_decode_worker_that_dies_or_drains_during_prefill_is_replaced_and_the_kv_goes_along():
    for event in (WorkerLost(2), WorkerDraining(2)):
        kv = KvRef(1, 20, LEASE)
        events = [Placed(placement(2, 1)), event, (100, 1), LegEnded(100, Finish.LEG_END, kv)]
        _, steps = run(events)
        assert steps[2] == ()
        assert steps[3] == (Release(10), Release(11), Pick(frozenset({2}), "decode_worker_gone", spends=False))
        _, steps = run([*events, Placed(placement(3, hold=12))])
        assert (started(steps[4]).kind, started(steps[4]).slot, started(steps[4]).kv) == ("handoff", 3, kv)
        _, steps = run([*events, Placed(placement(1, hold=12))])
        assert started(steps[4]).kv is None and RejectKv(1, kv) in steps[4]


def test_a_stream_whose_worker_is_lost_or_fails_goes_on_elsewhere_from_what_was_emitted():
    for event, why, spends in ((WorkerLost(2), "worker_lost", False), (LegFailed(100, "worker"), "worker_failed", True)):
        events = [Placed(placement(2)), (100, 7), event]
        chain, steps = run(events)
        assert steps[2] == (Release(10), Pick(frozenset({2}), why, spends))
        assert chain.emitted == 7 and not chain.accepts(100)
        chain, steps = run([*events, Placed(placement(3, hold=12))])
        leg = started(steps[3])
        assert (leg.kind, leg.slot, leg.kv, leg.hold) == ("resume", 3, None, 12)
        assert chain.leg.emitted_before == 7 and not chain.accepts(100) and chain.accepts(leg.leg_id)


def test_a_pull_from_a_worker_that_dies_is_computed_instead_at_once():
    kv = KvRef(1, 20, LEASE)
    _, steps = run([Placed(placement(2, 1)), (100, 1), LegEnded(100, Finish.LEG_END, kv), WorkerLost(1)])
    assert steps[3][0] == Abort(2, 101)
    leg = started(steps[3])
    assert (leg.leg_id, leg.slot, leg.kind, leg.kv, leg.hold) == (102, 2, "decode", None, 10)


def test_a_stream_is_given_up_only_after_many_placements_without_a_token():
    events, leg_id = [Placed(placement(2)), (100, 1), WorkerLost(2)], 102
    for tries in range(MAX_ATTEMPTS_BEGUN):
        chain, steps = run([*events, Placed(placement(3, hold=20 + tries))])
        assert chain.phase == "running"
        events += [Placed(placement(3, hold=20 + tries)), LegFailed(leg_id, "worker")]
        leg_id += 2
    _, steps = run(events)
    assert [a.status for a in steps[-1] if isinstance(a, Fail)] == ["aborted"]
    delays = [a.delay_s for actions in steps for a in actions if isinstance(a, Pick)]
    assert delays[:5] == [0, 0, 0, 0.05, 0.1] and max(delays) <= 1


def test_a_leg_that_moves_ends_with_its_kv_and_goes_on_at_the_booked_worker():
    kv = KvRef(2, 25, LEASE)
    events = [Placed(placement(2)), (100, 5), Move(placement(3, hold=12))]
    chain, steps = run(events)
    assert steps[2] == (HandOff(2, 100),) and chain.holds == {10, 12}
    chain, steps = run([*events, (100, 1), LegEnded(100, Finish.LEG_END, kv)])
    leg = started(steps[3])
    assert (leg.kind, leg.slot, leg.kv, leg.hold) == ("handoff", 3, kv, 12) and steps[3][0] == Release(10)
    assert chain.emitted == 6 and chain.holds == {12}


def test_a_leg_that_ends_before_it_moves_is_finished_and_its_target_released():
    kv = KvRef(2, 25, LEASE)
    events = [Placed(placement(2)), (100, 5), Move(placement(3, hold=12)), LegEnded(100, Finish.STOP, kv)]
    _, steps = run(events)
    assert steps[3] == (RejectKv(2, kv), Finished(Finish.STOP), Release(10), Release(12))


def test_a_worker_that_dies_while_its_leg_moves_is_continued_at_the_target_by_computing():
    _, steps = run([Placed(placement(2)), (100, 5), Move(placement(3, hold=12)), WorkerLost(2)])
    leg = started(steps[3])
    assert (leg.kind, leg.slot, leg.kv, leg.hold) == ("resume", 3, None, 12) and Release(10) in steps[3]


def test_a_target_that_dies_is_replaced_when_the_leg_ends():
    kv = KvRef(2, 25, LEASE)
    events = [Placed(placement(2)), (100, 5), Move(placement(3, hold=12)), WorkerLost(3)]
    _, steps = run(events)
    assert steps[3] == (Release(12),)
    _, steps = run([*events, LegEnded(100, Finish.LEG_END, kv), Placed(placement(4, hold=13))])
    assert steps[4][-1] == Pick(frozenset({2}), "handoff", spends=False)
    assert (started(steps[5]).slot, started(steps[5]).kv) == (4, kv)


def test_a_second_move_and_one_of_a_prefill_are_refused():
    _, steps = run([Placed(placement(2)), (100, 5), Move(placement(3, hold=12)), Move(placement(4, hold=13))])
    assert steps[3] == (Release(13),)
    _, steps = run([Placed(placement(2, 1)), Move(placement(3, hold=12))])
    assert steps[2] == (Release(12),)


def test_kv_that_nobody_takes_while_a_leg_is_placed_is_rejected():
    kv = KvRef(2, 25, LEASE)
    events = [Placed(placement(2)), (100, 5), LegEnded(100, Finish.LEG_END, kv)]
    for event in (ClientGone(), Unplaced("none_ready")):
        _, steps = run([*events, event])
        assert RejectKv(2, kv) in steps[3]


def test_a_worker_lost_before_the_first_token_is_left_without_spending_the_budget():
    _, steps = run([Placed(placement(2)), WorkerLost(2)])
    assert steps[2] == (Release(10), Pick(frozenset({2}), "worker_lost", spends=False))
    _, steps = run([Placed(placement(2)), WorkerLost(2), Placed(placement(3)), WorkerLost(3)])
    assert steps[4][-1] == Pick(frozenset({2, 3}), "worker_lost", spends=True, delay_s=0.05)


def test_a_failure_before_the_first_token_ends_unavailable_when_the_budget_is_spent():
    chain, _ = run([Placed(placement(2))])
    _, actions = step(chain, LegFailed(100, "worker", "broken"), 0.0, 101, may_retry=False)
    assert actions == (Fail("unavailable", "retries_exhausted", "worker_failed: broken"), Release(10))


def test_the_callers_fault_is_told_to_the_caller():
    _, steps = run([Placed(placement(2)), LegFailed(100, "caller", "does not compile", "sampling.regex")])
    assert steps[2][0] == Fail("invalid_argument", "caller", "does not compile", "sampling.regex")


def test_a_client_that_leaves_frees_the_leg_its_kv_and_its_bookings():
    kv = KvRef(1, 20, LEASE)
    events = [Placed(placement(2, 1)), (100, 1), LegEnded(100, Finish.LEG_END, kv), ClientGone()]
    _, steps = run(events)
    assert steps[3] == (Abort(2, 101), RejectKv(1, kv), Release(10))
    late = KvRef(1, 20, LEASE)
    _, steps = run([Placed(placement(2, 1)), ClientGone(), LegEnded(100, Finish.LEG_END, late)])
    assert steps[2] == (Abort(1, 100), Release(10), Release(11)) and steps[3] == (RejectKv(1, late),)


def test_a_placement_that_comes_too_late_is_released():
    _, steps = run([ClientGone(), Placed(placement(2, 1))])
    assert steps[2] == (Release(11), Release(10))


def test_a_request_that_nobody_can_run_is_unavailable():
    _, steps = run([Unplaced("none_ready", "no worker is ready")])
    assert steps[1] == (Fail("unavailable", "none_ready", "no worker is ready"),)


def test_the_budget_lets_a_fifth_of_the_requests_be_tried_again_and_never_under_three():
    budget = RetryBudget()
    for _ in range(int(FLOOR)):
        assert budget.allows()
        budget = budget.spent()
    assert not budget.allows()
    for _ in range(5):
        budget = budget.opened()
    assert budget.allows()


@given(st.lists(st.sampled_from(["open", "close", "retry"]), max_size=200))
@settings(max_examples=150, deadline=None)
def test_retries_never_exceed_the_floor_and_a_fifth_of_the_requests(history):
    budget, opened, retried = RetryBudget(), 0, 0
    for kind in history:
        if kind == "open":
            budget, opened = budget.opened(), opened + 1
        elif kind == "close" and budget.active:
            budget = budget.closed()
        elif kind == "retry" and budget.allows():
            budget, retried = budget.spent(), retried + 1
        assert retried <= FLOOR + RATIO * opened + 1e-6
        assert 0 <= budget.saved <= max(FLOOR, RATIO * budget.active)


def test_a_chain_knows_on_which_workers_it_counts():
    kv = KvRef(1, 20, LEASE)
    paired = [Placed(placement(2, 1))]
    assert [run(paired)[0].counts_on(slot) for slot in (1, 2, 3)] == [True, True, False]
    decoding = [*paired, (100, 1), LegEnded(100, Finish.LEG_END, kv)]
    assert [run(decoding)[0].counts_on(slot) for slot in (1, 2, 3)] == [True, True, False]
    moving = [Placed(placement(2)), (100, 1), Move(placement(3, hold=12))]
    assert [run(moving)[0].counts_on(slot) for slot in (1, 2, 3)] == [False, True, True]
    waiting = [Placed(placement(1)), (100, 1), LegEnded(100, Finish.LEG_END, kv)]
    assert [run(waiting)[0].counts_on(slot) for slot in (1, 2, 3)] == [True, False, False]
    assert not any(run([*paired, ClientGone()])[0].counts_on(slot) for slot in WORKERS)


def test_a_stream_under_which_worker_after_worker_dies_is_given_up():
    events, leg_id = [], 100
    for number in range(MAX_LOSSES + 1):
        events += [Placed(placement(2 + number % 3, hold=20 + number)), (leg_id, 1), WorkerLost(2 + number % 3)]
        leg_id += 2
    _, steps = run(events, max_tokens=50)
    assert [a.status for actions in steps[:-1] for a in actions if isinstance(a, Fail)] == []
    assert [a.status for a in steps[-1] if isinstance(a, Fail)] == ["aborted"]


def test_a_pull_that_takes_too_long_is_computed_instead():
    kv = KvRef(1, 20, LEASE)
    decoding = [Placed(placement(2, 1)), (100, 1), LegEnded(100, Finish.LEG_END, kv)]
    _, steps = run([*decoding, LegStalled(101)])
    assert steps[3][:2] == (Abort(2, 101), RejectKv(1, kv))
    assert (started(steps[3]).slot, started(steps[3]).kv, started(steps[3]).leg_id) == (2, None, 102)
    for late in ([(101, 1), LegStalled(101)], [LegStalled(100)]):
        _, steps = run([*decoding, *late])
        assert steps[-1] == ()
