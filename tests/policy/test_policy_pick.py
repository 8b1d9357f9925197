"""The pick against every placement priced one by one, and what people expect of it."""

import zlib
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_policy.cost.model import StepCost, TransferCost, predict_tpot, predict_ttft
from penstock_policy.pick.decision import Candidate, NoWorker, NoWorkerReason, PickRequest, Placement, Reason
from penstock_policy.pick.ledger import LoadLedger, LoadObservation
from penstock_policy.pick.pick import EXPECTED_OTHERS, EXPECTED_OUTPUT, HARM, KV_FULL, SOONER_RATIO, SOONER_S, place

TINY = StepCost(1.3e-3, 1.2e-4, 5e-5, 1e-8)
PULL = TransferCost(8e-3, 2e-6)
INF = float("inf")

steps = st.builds(StepCost, *[st.floats(1e-6, 1e-2) for _ in range(3)], st.floats(0, 1e-6))
candidates = st.builds(
    Candidate,
    slot=st.just(0),
    role=st.sampled_from(["prefill", "decode", "both"]),
    fresh=st.sampled_from([True, True, True, False]),
    draining=st.sampled_from([False, False, False, True]),
    block_size=st.just(16),
    kv_compat=st.sampled_from(["a", "a", "b"]),
    model_digest=st.sampled_from(["m", "m", "m", "other"]),
    max_model_len=st.sampled_from([100, 4096]),
    step=steps,
    transfer=st.builds(TransferCost, st.floats(0, 1e-2), st.floats(0, 1e-4)),
    max_running=st.integers(1, 8),
    max_batched_tokens=st.sampled_from([64, 2048]),
)
fleets = st.lists(candidates, max_size=6).map(lambda ws: [w._replace(slot=slot) for slot, w in enumerate(ws)])
loads = st.lists(
    st.builds(
        LoadObservation,
        running=st.integers(0, 10),
        waiting=st.integers(0, 3),
        prefill_tokens=st.integers(0, 3000),
        context_tokens=st.integers(0, 9000),
        kv_usage=st.sampled_from([0.0, 0.5, 0.99]),
    ).map(lambda load: load if load.running else replace(load, context_tokens=0)),
    max_size=6,
)
requests = st.builds(
    PickRequest,
    prompt_tokens=st.integers(1, 600),
    max_tokens=st.integers(1, 300),
    matched=st.dictionaries(st.integers(0, 5), st.integers(0, 40)),
    ttft_slo_s=st.sampled_from([INF, 0.1, 1.0]),
    tpot_slo_s=st.sampled_from([INF, 0.01, 0.1]),
    exclude=st.frozensets(st.integers(0, 5), max_size=2),
    prefer=st.sampled_from(["auto", "auto", "disaggregated", "colocated"]),
    model_digest=st.sampled_from(["", "m"]),
)


def halves(request, worker, load, now):
    """A worker's prefill and decode half, as the module's docstring prices them."""
    output = min(request.max_tokens, EXPECTED_OUTPUT)
    queued = load.queued_at(now, worker.step.prefill_s)
    cached = min(request.matched.get(worker.slot, 0), (request.prompt_tokens - 1) // worker.block_size)
    new = request.prompt_tokens - cached * worker.block_size
    ttft = predict_ttft(worker.step, new, queued, load.running, load.context_tokens, worker.max_batched_tokens)
    if load.running and (load.running >= worker.max_running or load.kv_usage >= KV_FULL):
        over = max(1, load.running - worker.max_running + 1)
        beside = worker.step.step_s(0, load.running, load.context_tokens)
        ttft += over * EXPECTED_OUTPUT * beside / min(load.running, worker.max_running)
    delayed = max(load.running, EXPECTED_OTHERS) if worker.role == "decode" else load.running
    context = request.prompt_tokens + output // 2
    tpot = predict_tpot(worker.step, load.running + 1, load.context_tokens + context, queued, output)
    slows = (worker.step.decode_s + worker.step.context_s * context) * load.running
    prefill = (ttft > request.ttft_slo_s, ttft + HARM * worker.step.prefill_s * new * delayed)
    decode = (tpot > request.tpot_slo_s, HARM * output * (tpot + slows)) if request.max_tokens > 1 else (False, 0.0)
    return prefill, decode, ttft, tpot, new


def priced(request, fleet, ledger, now):
    """Every placement: (missed, cost, prefill slot or None, slot, ttft, tpot)."""
    usable = [
        w
        for w in fleet
        if w.fresh
        and not w.draining
        and w.slot not in request.exclude
        and w.max_model_len > request.prompt_tokens
        and request.model_digest in ("", w.model_digest)
    ]
    half = {w.slot: halves(request, w, ledger.load(w.slot), now) for w in usable}
    alone, pairs = [], []
    for w in usable:
        (late, first), (slow, second), ttft, tpot, _ = half[w.slot]
        harm = min(request.max_tokens, EXPECTED_OUTPUT) * w.step.base_s
        harm = HARM * (harm + EXPECTED_OTHERS * request.prompt_tokens * w.step.prefill_s)
        extra = harm if w.role == "prefill" and request.max_tokens > 1 else 0.0
        alone.append((late + slow, first + second + extra, None, w.slot, ttft, tpot))
    for p, d in product(usable, usable):
        if p is d or p.role == "decode" or d.role == "prefill" or p.kv_compat != d.kv_compat or request.max_tokens < 2:
            continue
        (late, first), _, ttft, _, _ = half[p.slot]
        _, (slow, second), _, tpot, moved = half[d.slot]
        pairs.append((late + slow, first + second + d.transfer.transfer_s(moved), p.slot, d.slot, ttft, tpot))
    return alone, pairs


def cheapest(options):
    """By objectives missed, then cost; of equals the lowest slots, as nothing was placed before."""
    return min(options, key=lambda one: (*one[:2], -1 if one[2] is None else one[2], one[3]))


def clearly_sooner(alone, pair):
    return alone[0] <= pair[0] and alone[4] + SOONER_S < SOONER_RATIO * pair[4]


def filled(loads):
    ledger = LoadLedger()
    for slot, load in enumerate(loads):
        ledger.report(slot, load, 0.0)
    return ledger


@pytest.mark.slow
@given(requests, fleets, loads, st.floats(0, 0.2))
@settings(max_examples=200, deadline=None)
def test_no_placement_is_better_than_the_one_picked(request, fleet, loads, now):
    alone, pairs = priced(request, fleet, filled(loads), now)
    ledger = filled(loads)
    decision = place(request, fleet, ledger, now)
    if not alone:
        assert isinstance(decision, NoWorker) and ledger.open_bookings() == 0
        return
    pairs_considered = [] if request.prefer == "colocated" else pairs
    pool = alone + pairs_considered
    if request.prefer == "disaggregated" and pairs:
        pool = alone if clearly_sooner(cheapest(alone), cheapest(pairs)) else pairs
    best = cheapest(pool)
    assert isinstance(decision, Placement) and decision.considered == len(alone) + len(pairs_considered)
    (chosen,) = [one for one in alone + pairs if one[2:4] == (decision.prefill_slot, decision.slot)]
    assert chosen[0] == best[0] and chosen[1] == pytest.approx(best[1])
    assert (decision.ttft_s, decision.tpot_s) == pytest.approx(chosen[4:])
    assert ledger.open_bookings() == (1 if decision.prefill_slot is None else 2)
    assert decision == place(request, fleet, filled(loads), now)


def tiny(slot, role="both", **fields):
    return Candidate(slot, role, kv_compat="x", step=TINY, transfer=PULL, **fields)


def expect_place(request, fleet, kind, slot, prefill_slot=None, ledger=None):
    decision = place(request, fleet, ledger or LoadLedger(), 0.0)
    assert (decision.kind, decision.slot, decision.prefill_slot) == (kind, slot, prefill_slot)
    return decision


def test_an_idle_pair_of_pools_disaggregates_long_prompts_and_not_short_ones():
    fleet = [tiny(0, "prefill"), tiny(1, "decode")]
    expect_place(PickRequest(400, 64), fleet, "disaggregated", 1, 0)
    expect_place(PickRequest(12, 64), fleet, "colocated", 1)


def test_the_topology_decides_where_it_asks_for_a_kind():
    fleet = [tiny(0, "prefill"), tiny(1, "decode")]
    expect_place(PickRequest(12, 64, prefer="disaggregated"), fleet, "disaggregated", 1, 0)
    expect_place(PickRequest(4000, 64, prefer="colocated"), fleet, "colocated", 1)
    decision = expect_place(PickRequest(400, 1, prefer="disaggregated"), fleet, "colocated", 0)
    assert decision.reason is Reason.LEAST_COST


def test_kv_never_moves_between_unequal_workers():
    fleet = [tiny(0, "prefill"), tiny(1, "decode")._replace(kv_compat="y")]
    assert place(PickRequest(400, 64, prefer="disaggregated"), fleet, LoadLedger(), 0.0).prefill_slot is None


def test_a_cached_prefix_draws_the_request():
    expect_place(PickRequest(400, 64, {1: 20}), [tiny(0), tiny(1), tiny(2)], "colocated", 1)


def test_work_just_booked_sends_the_next_request_elsewhere():
    fleet, ledger = [tiny(0), tiny(1)], LoadLedger()
    first = place(PickRequest(400, 64), fleet, ledger, 0.0)
    second = place(PickRequest(400, 64), fleet, ledger, 0.0)
    assert {first.slot, second.slot} == {0, 1}


def test_equal_workers_take_turns():
    fleet, ledger, seen = [tiny(0), tiny(1), tiny(2)], LoadLedger(), []
    for _ in range(6):
        decision = place(PickRequest(100, 1), fleet, ledger, 0.0)
        ledger.release(decision.hold)
        seen.append(decision.slot)
    assert seen == [0, 1, 2, 0, 1, 2]


def test_a_dearer_placement_that_meets_the_objectives_wins():
    ledger = LoadLedger()
    ledger.report(0, LoadObservation(running=40, context_tokens=400), 0.0)
    slow = tiny(1)._replace(step=replace(TINY, prefill_s=2e-4), kv_compat="y")
    fleet = [tiny(0)._replace(step=replace(TINY, decode_s=1e-4)), slow]
    cached = PickRequest(1000, 4, {0: 60})
    assert place(cached, fleet, ledger, 0.0).slot == 0
    decision = place(cached._replace(tpot_slo_s=0.005), fleet, ledger, 0.0)
    assert decision.slot == 1


@pytest.mark.parametrize(
    ("fleet", "reason"),
    [
        ([], NoWorkerReason.NONE_JOINED),
        ([tiny(0, fresh=False), tiny(1, draining=True)], NoWorkerReason.NONE_READY),
        ([tiny(0, fresh=False), tiny(1, max_model_len=100)], NoWorkerReason.CONTEXT_TOO_SMALL),
        ([tiny(0, max_model_len=100), tiny(5)], NoWorkerReason.NONE_LEFT),
        ([tiny(0, model_digest="b")], NoWorkerReason.OTHER_MODEL),
    ],
)
def test_where_nobody_can_run_it_the_reason_says_why(fleet, reason):
    digest = "a" if reason is NoWorkerReason.OTHER_MODEL else ""
    decision = place(PickRequest(100, 8, exclude=frozenset({5}), model_digest=digest), fleet, LoadLedger(), 0.0)
    assert decision == NoWorker(reason, len(fleet))
    assert decision.explain().startswith(f"no worker of {len(fleet)}")


def test_a_decision_explains_itself_in_one_line():
    fleet = [tiny(0, "prefill"), tiny(1, "decode")]
    decision = place(PickRequest(400, 64, {0: 6}), fleet, LoadLedger(), 0.0)
    text = decision.explain(lambda slot: f"w{slot}")
    assert text.startswith("pair w0->w1: ttft 37.8 ms, tpot 1.4 ms vs alone w0 ttft 37.8 ms")
    assert text.endswith("; 96 of 400 tokens cached, 400 to transfer")


def test_context_booked_for_a_pair_lies_on_the_decode_worker():
    fleet, ledger = [tiny(0, "prefill"), tiny(1, "decode")], LoadLedger()
    decision = place(PickRequest(400, 64, {0: 6}), fleet, ledger, 0.0)
    assert ledger.load(0).queued_prefill_tokens == 304 and ledger.load(0).context_tokens == 0
    assert ledger.load(1).queued_prefill_tokens == 0 and ledger.load(1).context_tokens == 400
    assert ledger.release(decision.hold) and ledger.release(decision.prefill_hold)
    assert ledger.load(0).running == ledger.load(1).running == 0


def test_routers_that_see_the_same_idle_workers_do_not_all_choose_the_same_one():
    fleet = [tiny(slot) for slot in range(8)]
    ledgers = [LoadLedger(zlib.crc32(f"router-{i}".encode())) for i in range(4)]
    for ledger in ledgers:
        for slot in range(8):
            ledger.report(slot, LoadObservation(0), 0.0)
    first = [place(PickRequest(200, 64), fleet, ledger, 0.0).slot for ledger in ledgers]
    assert len(set(first)) >= 3
    for ledger in ledgers:
        for _ in range(7):
            place(PickRequest(200, 64), fleet, ledger, 0.0)
        assert {ledger.load(slot).booked for slot in range(8)} == {1}
