"""Which running leg leaves an overloaded worker, and for where.

Promise: a move is proposed only from a worker where sequences wait for room (or will, its KV being nearly full) to one of
equal `kv_compat` that has room for it, and only where the predicted time saved exceeds the predicted time lost; equal
inputs, equal proposal. One proposal per call: the caller books it, and the next one sees the booking.

The pairing is Llumnix's (Sun et al., OSDI 2024): the worker with the least freeness gives to the one with the most, a
sequence of low priority and short context. Whether it pays is judged by the cost model, which Llumnix leaves to a threshold.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from penstock_policy.pick.decision import Candidate
from penstock_policy.pick.ledger import LoadLedger, WorkerLoad

KV_HIGH = 0.92  # from here on the next blocks are taken from somebody
KV_ROOM = 0.75  # a target stays below this with the sequence on it
SEQUENCES_ROOM = 0.8  # of max_running
MIN_REMAINING = 16  # tokens; what ends soon frees its place soon
MEAN_OUTPUT = 128  # tokens of a sequence of which only the bound is known


@dataclass(frozen=True, slots=True)
class Running:
    """A leg that could move."""

    key: int
    context_tokens: int
    remaining: int  # tokens at most
    priority: int  # higher is served first


@dataclass(frozen=True, slots=True)
class Proposal:
    key: int
    source: int
    target: int
    reason: str  # memory or sequences: what the source has too little of
    saved_s: float
    lost_s: float


def propose(candidates: Iterable[Candidate], ledger: LoadLedger, running: Callable[[int], Sequence[Running]]) -> Proposal | None:
    """`running` gives a worker's legs; it is asked only for overloaded ones, the worst first."""
    pool = [(worker, ledger.load(worker.slot)) for worker in candidates]
    sources = [(stress(worker, load), worker, load) for worker, load in pool if worker.fresh]
    for pressure, source, load in sorted((s for s in sources if s[0] >= 1.0), key=lambda s: (-s[0], s[1].slot)):
        del pressure
        legs = sorted(running(source.slot), key=lambda leg: (leg.priority, leg.context_tokens, leg.key))
        for leg in legs:
            if leg.remaining < MIN_REMAINING:
                continue
            target = _target(source, leg, pool)
            if target is not None:
                proposal = _judge(source, load, leg, target)
                if proposal is not None:
                    return proposal
    return None


def stress(worker: Candidate, load: WorkerLoad) -> float:
    """1 and above: sequences wait for room, or are about to lose it."""
    return max(load.kv_usage / KV_HIGH, load.running / (worker.max_running + 1))


def _target(source: Candidate, leg: Running, pool: Sequence[tuple[Candidate, WorkerLoad]]) -> Candidate | None:
    fits = []
    for worker, load in pool:
        if worker.slot == source.slot or not worker.fresh or worker.draining or worker.kv_compat != source.kv_compat:
            continue
        kv = load.kv_usage + leg.context_tokens / max(1, worker.kv_blocks * worker.block_size)
        sequences = (load.running + 1) / max(1, worker.max_running)
        if kv < KV_ROOM and sequences < SEQUENCES_ROOM and worker.max_model_len > leg.context_tokens + 1:
            fits.append((max(kv, sequences), worker.slot, worker))
    return min(fits)[2] if fits else None


def _judge(source: Candidate, load: WorkerLoad, leg: Running, target: Candidate) -> Proposal | None:
    """Lost: the leg's own pause. Saved: what somebody else would wait or have computed again."""
    step_s = source.step.step_s(0, min(load.running, source.max_running), load.context_tokens)
    lost_s = target.transfer.transfer_s(leg.context_tokens) + 2 * step_s
    if load.running > source.max_running:
        reason, saved_s = "sequences", min(leg.remaining, MEAN_OUTPUT) * step_s
    else:
        # The sequence that is preempted is computed again; the mean one stands for it.
        reason, saved_s = "memory", source.step.prefill_s * load.context_tokens / max(1, load.running) + step_s
    if saved_s <= lost_s:
        return None
    return Proposal(leg.key, source.slot, target.slot, reason, saved_s, lost_s)
