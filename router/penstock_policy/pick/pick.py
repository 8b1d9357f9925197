"""Which worker, or which pair of workers, runs a request.

Promise: of {each worker alone, each prefill worker with each decode worker of equal `kv_compat`} the one that costs
least by prediction, booked in the same call; equal state, equal decision.

Placements are ordered by (objectives missed, cost in seconds). A pair's order is the sum of a prefill side and a
decode side, so the best pair is the best of each side: no product of workers is walked. Cost is

    ttft_s
    + the delay that computing the prompt brings to sequences that decode beside it    (HARM per sequence)
    + the answer's decode time, and what it slows others                               (HARM)
    + transfer_s                                                                       (pairs)

A pool of its own is deployed for work that will come, so roles count even when idle. A prompt computed on a decode
worker delays at least EXPECTED_OTHERS sequences. An answer decoded on a prefill worker is delayed by as many prompts
like its own, and lengthens their steps.
"""

from collections.abc import Iterable
from typing import NamedTuple

from penstock_policy.pick.decision import (
    Candidate,
    Decision,
    NoWorker,
    NoWorkerReason,
    PickRequest,
    Placement,
    Reason,
    Rejected,
)
from penstock_policy.pick.ledger import LoadLedger, WorkerLoad

HARM = 0.1  # a second of delay spread over an answer, against a second before the first token
EXPECTED_OTHERS = 8
EXPECTED_OUTPUT = 128  # tokens; answers mostly end before a larger max_tokens
SOONER_S = 0.05  # a whole placement must promise this much less, and
SOONER_RATIO = 0.8  # this part of a pair's TTFT, to be taken where pairs are preferred
KV_FULL = 0.98  # kv_usage from which a new sequence waits for another's end


# A worker's two halves, computing the prompt and decoding the answer; a plain tuple because it is made per worker and
# request: slot, last placed there, TTFT missed, prefill cost, TTFT, tokens cached, TPOT missed, decode cost, TPOT,
# tokens to transfer.
_Sides = tuple[int, int, bool, float, float, int, bool, float, float, int]
_Half = tuple[bool, float, int, int, _Sides]  # missed, cost, last placed, slot


class _Option(NamedTuple):
    """A placement; compares by order, then who was left alone longest, then slots."""

    missed: int
    cost: float
    placed: int
    prefill_slot: int  # -1: alone
    slot: int
    ttft_s: float
    tpot_s: float
    cached: int
    transfer: int


def place(request: PickRequest, candidates: Iterable[Candidate], ledger: LoadLedger, now: float) -> Decision:
    """Pick and book. The prompt's tokens are booked where they are computed, its context where it decodes."""
    pool = candidates if isinstance(candidates, (list, tuple)) else list(candidates)
    usable = _usable(request, pool)
    if not usable:
        return NoWorker(_why_none(request, pool), len(pool))
    sides = _survey(request, usable, ledger, now)
    alone = _best_alone(request, usable, sides)
    pair, considered = None, len(sides)
    if request.max_tokens > 1 and len(sides) > 1 and request.prefer != "colocated":
        pair, count = _best_pair(usable, sides)
        considered += count
    chosen, other, reason = _choose(request, alone, pair, considered)
    return _book(request, chosen, other, reason, considered, ledger)


def _choose(
    request: PickRequest, alone: _Option, pair: _Option | None, considered: int
) -> tuple[_Option, _Option | None, Reason]:
    if pair is None:
        return alone, None, Reason.ONLY if considered == 1 else Reason.LEAST_COST
    if request.prefer == "disaggregated" and not _clearly_sooner(alone, pair):
        return pair, alone, Reason.PREFERRED
    chosen, other = (alone, pair) if alone < pair else (pair, alone)
    return chosen, other, Reason.SLO if other.cost < chosen.cost else Reason.LEAST_COST


def _clearly_sooner(alone: _Option, pair: _Option) -> bool:
    """A deployment of prefill and decode pools wants pairs: predictions of idle engines differ by noise of this size."""
    return alone.missed <= pair.missed and alone.ttft_s + SOONER_S < SOONER_RATIO * pair.ttft_s


def _book(
    request: PickRequest, chosen: _Option, other: _Option | None, reason: Reason, considered: int, ledger: LoadLedger
) -> Placement:
    paired = chosen.prefill_slot >= 0
    new_tokens = request.prompt_tokens - chosen.cached
    prefill_hold = ledger.book(chosen.prefill_slot, new_tokens, 0) if paired else 0
    hold = ledger.book(chosen.slot, 0 if paired else new_tokens, request.prompt_tokens)
    rejected = None
    if other is not None:
        source = other.prefill_slot if other.prefill_slot >= 0 else None
        rejected = Rejected(source, other.slot, other.ttft_s, other.tpot_s)
    return Placement(
        "disaggregated" if paired else "colocated",
        chosen.slot,
        chosen.prefill_slot if paired else None,
        chosen.ttft_s,
        chosen.tpot_s,
        reason,
        considered,
        hold,
        prefill_hold,
        request.prompt_tokens,
        chosen.cached,
        chosen.transfer,
        rejected,
    )


def _usable(request: PickRequest, candidates: Iterable[Candidate]) -> list[Candidate]:
    need, digest, exclude = request.prompt_tokens + 1, request.model_digest, request.exclude
    return [
        worker
        for worker in candidates
        if worker.fresh
        and not worker.draining
        and worker.max_model_len >= need
        and worker.slot not in exclude
        and (not digest or worker.model_digest == digest)
    ]


def _why_none(request: PickRequest, candidates: Iterable[Candidate]) -> NoWorkerReason:
    """The reason of the worker that came nearest to being usable."""
    nearest = 0
    for worker in candidates:
        if request.model_digest and worker.model_digest != request.model_digest:
            nearest = max(nearest, 1)
        elif not worker.fresh or worker.draining:
            nearest = max(nearest, 2)
        elif worker.max_model_len <= request.prompt_tokens:
            nearest = max(nearest, 3)
        else:
            nearest = 4
    return tuple(NoWorkerReason)[nearest]


def _survey(request: PickRequest, workers: list[Candidate], ledger: LoadLedger, now: float) -> list[_Sides]:
    """Predictions as `cost.model` makes them, written out in one loop: it runs for every worker and request."""
    prompt = request.prompt_tokens
    output = request.max_tokens if request.max_tokens < EXPECTED_OUTPUT else EXPECTED_OUTPUT
    mean_context = prompt + output // 2
    harmed = HARM * output
    ttft_slo_s, tpot_slo_s = request.ttft_slo_s, request.tpot_slo_s
    matched = request.matched.get
    out = []
    for worker in workers:
        slot, step, block = worker.slot, worker.step, worker.block_size
        load = ledger.load(slot)
        base_s, prefill_s, running = step.base_s, step.prefill_s, load.running
        queued: float = load.queued_prefill_tokens
        if load.reported_tokens:
            queued = load.queued_at(now, prefill_s)
        cached = matched(slot, 0) * block
        if cached >= prompt:
            # The last prompt token is always computed, so a whole match still leaves a block.
            cached = (prompt - 1) // block * block
        new = prompt - cached
        compute_s = prefill_s * new
        tpot_s = base_s
        own_s = step.decode_s + step.context_s * mean_context
        ttft_s = prefill_s * queued + compute_s
        delayed = running
        if running:
            tpot_s += step.decode_s * running + step.context_s * load.context_tokens
            ttft_s += 0.5 * tpot_s
            if running >= worker.max_running or load.kv_usage >= KV_FULL:
                ttft_s += _room_s(worker, load, tpot_s)
        ahead = queued + new
        if ahead > worker.max_batched_tokens:
            ttft_s -= ahead // -worker.max_batched_tokens * tpot_s
        else:
            ttft_s += tpot_s
        if delayed < EXPECTED_OTHERS and worker.role == "decode":
            delayed = EXPECTED_OTHERS
        tpot_s += own_s + prefill_s * queued / output
        out.append(
            (
                slot,
                load.placed,
                ttft_s > ttft_slo_s,
                ttft_s + HARM * compute_s * delayed,
                ttft_s,
                cached,
                tpot_s > tpot_slo_s,
                harmed * (tpot_s + own_s * running),
                tpot_s,
                new,
            )
        )
    return out


def _room_s(worker: Candidate, load: WorkerLoad, step_s: float) -> float:
    """How long a new sequence waits for room: until enough of those before it have ended."""
    over = max(1, load.running - worker.max_running + 1)
    return over * EXPECTED_OUTPUT * step_s / max(1, min(load.running, worker.max_running))


def _best_alone(request: PickRequest, workers: list[Candidate], sides: list[_Sides]) -> _Option:
    harmed = HARM * min(request.max_tokens, EXPECTED_OUTPUT)
    delayed = HARM * EXPECTED_OTHERS * request.prompt_tokens
    decodes = request.max_tokens > 1
    options = []
    for worker, (slot, placed, late, prefill_cost, ttft_s, cached, slow, decode_cost, tpot_s, _) in zip(
        workers, sides, strict=True
    ):
        if not decodes:
            options.append((int(late), prefill_cost, placed, -1, slot, ttft_s, tpot_s, cached, 0))
            continue
        cost = prefill_cost + decode_cost
        if worker.role == "prefill":
            cost += harmed * worker.step.base_s + delayed * worker.step.prefill_s
        options.append((late + slow, cost, placed, -1, slot, ttft_s, tpot_s, cached, 0))
    return _Option(*min(options))


def _best_pair(workers: list[Candidate], sides: list[_Sides]) -> tuple[_Option | None, int]:
    """The best pair, and how many there are. One worker cannot be both halves, hence two of each side."""
    firsts: dict[str, list[_Half]] = {}
    seconds: dict[str, list[_Half]] = {}
    same: dict[str, int] = {}
    for worker, side in zip(workers, sides, strict=True):
        compat, role = worker.kv_compat, worker.role
        slot, placed = side[0], side[1]
        if role != "decode":
            firsts.setdefault(compat, []).append((side[2], side[3], placed, slot, side))
        if role != "prefill":
            transfer = worker.transfer
            cost = side[7] + transfer.base_s + transfer.token_s * side[9]
            seconds.setdefault(compat, []).append((side[6], cost, placed, slot, side))
            if role == "both":
                same[compat] = same.get(compat, 0) + 1
    options = []
    count = 0
    for compat, prefills in firsts.items():
        decodes = seconds.get(compat, [])
        count += len(prefills) * len(decodes) - same.get(compat, 0)
        for late, prefill_cost, p_placed, p_slot, p in _two_least(prefills):
            for slow, decode_cost, d_placed, d_slot, d in _two_least(decodes):
                if p_slot != d_slot:
                    cost = prefill_cost + decode_cost
                    options.append((late + slow, cost, p_placed + d_placed, p_slot, d_slot, p[4], d[8], p[5], d[9]))
    return (_Option(*min(options)) if options else None), count


def _two_least(halves: list[_Half]) -> list[_Half]:
    if len(halves) <= 2:
        return halves
    first = min(halves)
    return [first, min(half for half in halves if half is not first)]
