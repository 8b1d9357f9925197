"""Moves for room: proposed only where somebody waits, somebody has room, and the prediction pays."""

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_policy.cost.model import StepCost, TransferCost
from penstock_policy.pick.decision import Candidate
from penstock_policy.pick.ledger import LoadLedger, LoadObservation
from penstock_policy.pick.rebalance import KV_HIGH, KV_ROOM, MIN_REMAINING, SEQUENCES_ROOM, Running, propose

STEP, PULL = StepCost(0.01, 1e-4, 1e-4, 1e-7), TransferCost(0.005, 1e-6)


def worker(slot, **fields):
    made = {"kv_compat": "k", "step": STEP, "transfer": PULL, "max_running": 8, "kv_blocks": 1000, "block_size": 16, **fields}
    return Candidate(slot, **made)


def loaded(**by_slot):
    ledger = LoadLedger()
    for name, load in by_slot.items():
        ledger.report(int(name[1:]), load, 0.0)
    return ledger


FULL = LoadObservation(running=8, waiting=3, context_tokens=8000, kv_usage=0.6)
NO_MEMORY = LoadObservation(running=5, context_tokens=15_000, kv_usage=0.96)
IDLE = LoadObservation(running=1, context_tokens=100, kv_usage=0.05)
LEGS = [Running(1, 2000, 500, 0), Running(2, 500, 500, 0), Running(3, 100, 500, 5), Running(4, 90, MIN_REMAINING - 1, 0)]


def test_the_shortest_of_the_lowest_priority_goes_to_the_emptiest():
    fleet = [worker(0), worker(1), worker(2)]
    ledger = loaded(w0=FULL, w1=LoadObservation(running=4, kv_usage=0.4), w2=IDLE)
    proposal = propose(fleet, ledger, lambda slot: LEGS if slot == 0 else [])
    assert (proposal.key, proposal.source, proposal.target, proposal.reason) == (2, 0, 2, "sequences")
    assert proposal.saved_s > proposal.lost_s


def test_memory_that_is_nearly_full_moves_what_would_be_computed_again():
    proposal = propose([worker(0), worker(1)], loaded(w0=NO_MEMORY, w1=IDLE), lambda slot: LEGS)
    assert proposal.reason == "memory" and proposal.target == 1


def test_nothing_moves_where_it_does_not_pay():
    slow = worker(1, transfer=TransferCost(5.0, 1e-3))
    assert propose([worker(0), slow], loaded(w0=NO_MEMORY, w1=IDLE), lambda slot: LEGS) is None


def test_nothing_moves_while_everybody_has_room():
    asked = []
    assert propose([worker(0), worker(1)], loaded(w0=IDLE, w1=IDLE), lambda slot: asked.append(slot) or LEGS) is None
    assert asked == []


def test_nothing_moves_to_what_cannot_take_it():
    ledger = loaded(w0=FULL, w1=IDLE)
    for target in (
        worker(1, kv_compat="other"),
        worker(1, draining=True),
        worker(1, fresh=False),
        worker(1, max_model_len=50),
        worker(1, kv_blocks=4),
        worker(1, max_running=2),
    ):
        assert propose([worker(0), target], ledger, lambda slot: LEGS[:2]) is None


loads = st.builds(
    LoadObservation,
    running=st.integers(0, 12), waiting=st.integers(0, 5), context_tokens=st.integers(0, 20_000), kv_usage=st.floats(0, 1),
)  # fmt: skip
legs = st.lists(st.builds(Running, st.integers(1, 9), st.integers(1, 9000), st.integers(0, 600), st.integers(0, 3)), max_size=5)


@given(st.lists(loads, min_size=1, max_size=5), legs, st.sampled_from(["k", "j"]))
@settings(max_examples=200, deadline=None)
def test_whatever_is_proposed_keeps_the_promise(observations, running, last_compat):
    fleet = [worker(slot) for slot in range(len(observations))]
    fleet[-1] = worker(len(observations) - 1, kv_compat=last_compat)
    ledger = loaded(**{f"w{slot}": load for slot, load in enumerate(observations)})
    proposal = propose(fleet, ledger, lambda slot: running)
    assert proposal == propose(fleet, ledger, lambda slot: running)
    if proposal is None:
        return
    source, target = observations[proposal.source], observations[proposal.target]
    leg = next(r for r in running if r.key == proposal.key and r.remaining >= MIN_REMAINING)
    assert source.kv_usage >= KV_HIGH or source.running + source.waiting > 8
    assert target.kv_usage < KV_ROOM and target.running + target.waiting + 1 < SEQUENCES_ROOM * 8
    assert fleet[proposal.source].kv_compat == fleet[proposal.target].kv_compat and proposal.source != proposal.target
    assert proposal.saved_s > proposal.lost_s and leg.remaining >= MIN_REMAINING
