"""Which worker, or which pair of workers, runs a request.

Promise: of {each worker alone, each prefill worker with each decode worker of equal `kv_compat`} the one that costs
least by prediction, booked in the same call; equal state, equal decision.

Placements are ordered by (objectives missed, cost in seconds). A pair's order is the sum of a prefill side and a
decode side, so the best pair is the best of each side: no product of workers is walked. Cost is

    ttft_s
    + the delay that computing the prompt brings to sequences that decode beside it    (HARM per sequence)
    + the answer's decode time, and what it slows others                               (HARM)
    + transfer_s                                                                       (pairs)

A decode worker counts EXPECTED_DECODES sequences even when idle: it was deployed to decode, and a prompt computed
there delays whatever comes next. Decoding on a prefill worker is charged for the prompts it will delay.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from penstock_policy.pick.decision import (
    Candidate,
    Decision,
    Kind,
    NoWorker,
    NoWorkerReason,
    PickRequest,
    Placement,
    Reason,
    Rejected,
)
from penstock_policy.pick.ledger import LoadLedger, WorkerLoad

HARM = 0.1  # a second of delay spread over an answer, against a second before the first token
EXPECTED_DECODES = 8
EXPECTED_OUTPUT = 128  # tokens; answers mostly end before a larger max_tokens
KV_FULL = 0.98  # kv_usage from which a new sequence waits for another's end


class _Side(NamedTuple):
    """One half of a placement on one worker; compares by order, ties by placements made there, then slot."""

    missed: int
    cost: float
    placed: int
    slot: int
    figure_s: float  # TTFT of a prefill side, TPOT of a decode side
    tokens: int  # cached of a prefill side, to transfer of a decode side


class _Option(NamedTuple):
    missed: int
    cost: float
    placed: int
    prefill_slot: int  # -1: alone
    slot: int
    ttft_s: float
    tpot_s: float
    cached: int
    transfer: int


@dataclass(frozen=True, slots=True)
class _View:
    """A usable worker with its load."""

    worker: Candidate
    load: WorkerLoad


def place(request: PickRequest, candidates: Iterable[Candidate], ledger: LoadLedger, now: float) -> Decision:
    """Pick and book. The prompt's tokens are booked where they are computed, its context where it decodes."""
    views, why = _usable(request, candidates, ledger, now)
    if not views:
        return why
    alone, pairs, considered = _options(request, views)
    best_pair = min(pairs, default=None)
    best_alone = min(alone, default=None)
    chosen, other, reason = _choose(request, best_alone, best_pair)
    if reason is Reason.LEAST_COST:
        if considered == 1:
            reason = Reason.ONLY
        elif any(o.cost < chosen.cost for o in (*alone, *pairs)):
            reason = Reason.SLO
    new_tokens = request.prompt_tokens - chosen.cached
    kind: Kind = "colocated"
    prefill_hold = 0
    if chosen.prefill_slot >= 0:
        kind = "disaggregated"
        prefill_hold = ledger.book(chosen.prefill_slot, new_tokens, 0)
        hold = ledger.book(chosen.slot, 0, request.prompt_tokens)
    else:
        hold = ledger.book(chosen.slot, new_tokens, request.prompt_tokens)
    return Placement(
        kind,
        chosen.slot,
        chosen.prefill_slot if chosen.prefill_slot >= 0 else None,
        chosen.ttft_s,
        chosen.tpot_s,
        reason,
        considered,
        hold,
        prefill_hold,
        request.prompt_tokens,
        chosen.cached,
        chosen.transfer,
        None
        if other is None
        else Rejected(other.prefill_slot if other.prefill_slot >= 0 else None, other.slot, other.ttft_s, other.tpot_s),
    )


def _usable(
    request: PickRequest, candidates: Iterable[Candidate], ledger: LoadLedger, now: float
) -> tuple[list[_View], NoWorker]:
    need = request.prompt_tokens + 1
    views: list[_View] = []
    reason = NoWorkerReason.NONE_JOINED
    seen = 0
    for worker in candidates:
        seen += 1
        if not worker.fresh or worker.draining:
            reason = max(reason, NoWorkerReason.NONE_READY, key=_NEARNESS.__getitem__)
        elif request.model_digest and worker.model_digest != request.model_digest:
            reason = max(reason, NoWorkerReason.OTHER_MODEL, key=_NEARNESS.__getitem__)
        elif worker.max_model_len < need:
            reason = max(reason, NoWorkerReason.CONTEXT_TOO_SMALL, key=_NEARNESS.__getitem__)
        elif worker.slot in request.exclude:
            reason = NoWorkerReason.NONE_LEFT
        else:
            views.append(_View(worker, ledger.load(worker.slot, now, worker.step.prefill_s)))
    return views, NoWorker(reason, seen)


# The reason given is that of the worker that came nearest to being usable.
_NEARNESS = {
    NoWorkerReason.NONE_JOINED: 0,
    NoWorkerReason.OTHER_MODEL: 1,
    NoWorkerReason.NONE_READY: 2,
    NoWorkerReason.CONTEXT_TOO_SMALL: 3,
    NoWorkerReason.NONE_LEFT: 4,
}


def _choose(request: PickRequest, alone: _Option | None, pair: _Option | None) -> tuple[_Option, _Option | None, Reason]:
    if pair is None:
        assert alone is not None  # every usable worker makes an option alone
        return alone, None, Reason.LEAST_COST
    if alone is None or request.prefer == "disaggregated":
        return pair, alone, Reason.PREFERRED
    if request.prefer == "colocated":
        return alone, pair, Reason.PREFERRED
    return (alone, pair, Reason.LEAST_COST) if alone < pair else (pair, alone, Reason.LEAST_COST)


def _options(request: PickRequest, views: list[_View]) -> tuple[list[_Option], list[_Option], int]:
    output = min(max(request.max_tokens, 1), EXPECTED_OUTPUT)
    pairing = request.max_tokens > 1 and len(views) > 1
    alone: list[_Option] = []
    firsts: dict[str, list[_Side]] = {}
    seconds: dict[str, list[_Side]] = {}
    for view in views:
        role = view.worker.role
        prefill = _prefill_side(request, view, output)
        decode = _decode_side(request, view, output)
        # Decoding on a prefill worker lengthens its later prompts' steps by the base of each decode step.
        misplaced = HARM * output * view.worker.step.base_s if role == "prefill" and request.max_tokens > 1 else 0.0
        alone.append(
            _Option(
                prefill.missed + decode.missed,
                prefill.cost + decode.cost + misplaced,
                prefill.placed,
                -1,
                prefill.slot,
                prefill.figure_s,
                decode.figure_s,
                prefill.tokens,
                0,
            )
        )
        if pairing:
            if role != "decode":
                firsts.setdefault(view.worker.kv_compat, []).append(prefill)
            if role != "prefill":
                cost = decode.cost + view.worker.transfer.transfer_s(decode.tokens)
                seconds.setdefault(view.worker.kv_compat, []).append(decode._replace(cost=cost))
    pairs: list[_Option] = []
    considered = len(alone)
    for compat, prefills in firsts.items():
        decodes = seconds.get(compat, [])
        slots = {side.slot for side in prefills}
        considered += len(prefills) * len(decodes) - sum(side.slot in slots for side in decodes)
        pairs.extend(_best_pairs(prefills, decodes))
    return alone, pairs, considered


def _best_pairs(prefills: list[_Side], decodes: list[_Side]) -> list[_Option]:
    """The pairs among which the best is: the best of each side, or a runner-up where they are one worker."""
    top_prefills = _two_least(prefills)
    top_decodes = _two_least(decodes)
    return [
        _Option(
            p.missed + d.missed, p.cost + d.cost, p.placed + d.placed, p.slot, d.slot, p.figure_s, d.figure_s, p.tokens, d.tokens
        )
        for p in top_prefills
        for d in top_decodes
        if p.slot != d.slot
    ]


def _two_least(sides: list[_Side]) -> list[_Side]:
    if len(sides) <= 2:
        return sides
    first = min(sides)
    return [first, min(side for side in sides if side is not first)]


def _prefill_side(request: PickRequest, view: _View, output: int) -> _Side:
    worker, load = view.worker, view.load
    step = worker.step
    block = worker.block_size
    # The last prompt token is always computed, so a whole match still leaves a block.
    cached = min(request.matched.get(worker.slot, 0), (request.prompt_tokens - 1) // block) * block
    new_tokens = request.prompt_tokens - cached
    compute_s = step.prefill_s * new_tokens
    beside_s = step.base_s + step.decode_s * load.running + step.context_s * load.context_tokens
    ahead = load.queued_prefill_tokens + new_tokens
    steps = -(-ahead // worker.max_batched_tokens)
    ttft_s = steps * beside_s + step.prefill_s * ahead
    if load.running:
        ttft_s += 0.5 * beside_s + _room_s(worker, load, beside_s)
    delayed = load.running if worker.role != "decode" else max(load.running, EXPECTED_DECODES)
    return _Side(
        1 if ttft_s > request.ttft_slo_s else 0,
        ttft_s + HARM * compute_s * delayed,
        load.placed,
        worker.slot,
        ttft_s,
        cached,
    )


def _room_s(worker: Candidate, load: WorkerLoad, step_s: float) -> float:
    """How long a new sequence waits for room: until enough of those before it have ended."""
    over = load.running - worker.max_running + 1
    if load.kv_usage >= KV_FULL:
        over = max(over, 1)
    return max(0, over) * EXPECTED_OUTPUT * step_s / max(1, min(load.running, worker.max_running))


def _decode_side(request: PickRequest, view: _View, output: int) -> _Side:
    worker, load = view.worker, view.load
    step = worker.step
    context = request.prompt_tokens + output // 2
    own_s = step.decode_s + step.context_s * context
    tpot_s = (
        step.base_s
        + step.decode_s * load.running
        + step.context_s * load.context_tokens
        + own_s
        + step.prefill_s * load.queued_prefill_tokens / output
    )
    room_s = _room_s(worker, load, tpot_s) if load.running else 0.0
    cached = min(request.matched.get(worker.slot, 0), (request.prompt_tokens - 1) // worker.block_size)
    if request.max_tokens <= 1:
        return _Side(0, 0.0, load.placed, worker.slot, tpot_s, 0)
    return _Side(
        1 if tpot_s > request.tpot_slo_s else 0,
        HARM * output * (tpot_s + own_s * load.running) + room_s,
        load.placed,
        worker.slot,
        tpot_s,
        request.prompt_tokens - cached * worker.block_size,
    )
