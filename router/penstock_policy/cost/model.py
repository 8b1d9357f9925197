"""What work costs on a worker: linear in tokens and sequences, measured by the worker that does it.

    step_s = base_s + prefill_s * prefill_tokens + decode_s * decodes + context_s * context_tokens

Promise: predictions grow with load, never below zero, and are defined when nothing was measured (PRIOR).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import isclose

MEASURED_SAMPLES = 16  # steps (or transfers) below which a worker's own figures are not believed
_WEIGHT_CAP = 2048  # samples; beyond, a worker weighs no more in its shape's pool


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of an engine step by what is in it."""

    base_s: float
    prefill_s: float  # per prompt token computed
    decode_s: float  # per sequence that decodes
    context_s: float  # per context token of those sequences

    def step_s(self, prefill_tokens: float, decodes: float, context_tokens: float) -> float:
        return self.base_s + self.prefill_s * prefill_tokens + self.decode_s * decodes + self.context_s * context_tokens


@dataclass(frozen=True, slots=True)
class TransferCost:
    """Seconds of a KV pull."""

    base_s: float
    token_s: float

    def transfer_s(self, tokens: float) -> float:
        return self.base_s + self.token_s * tokens


# Between a small model on a CPU and an 8B model on one datacenter GPU: good for order, not for promises.
PRIOR = StepCost(base_s=5e-3, prefill_s=5e-5, decode_s=1e-4, context_s=5e-8)
TRANSFER_PRIOR = TransferCost(base_s=5e-3, token_s=2e-6)


@dataclass(frozen=True, slots=True)
class CostObservation:
    """A worker's CostReport."""

    shape: str
    step: StepCost
    samples: int
    transfer: TransferCost = TRANSFER_PRIOR
    transfers: int = 0


def predict_ttft(
    step: StepCost,
    new_tokens: float,
    queued_tokens: float = 0,
    running: float = 0,
    context_tokens: float = 0,
    max_batched_tokens: int = 2048,
) -> float:
    """Seconds until `new_tokens` behind `queued_tokens` are computed beside running decodes, chunk by chunk."""
    ahead = queued_tokens + new_tokens
    beside = step.base_s + step.decode_s * running + step.context_s * context_tokens
    steps = max(1.0, -(-ahead // max_batched_tokens))
    # A busy engine is on average half way through a step when a request comes.
    return steps * beside + step.prefill_s * ahead + (0.5 * beside if running else 0.0)


def predict_tpot(
    step: StepCost, running: float, context_tokens: float, queued_tokens: float = 0, output_tokens: float = 128
) -> float:
    """Seconds per output token with `running` sequences, this one included; prefills that wait now stall it once."""
    stalled = step.prefill_s * queued_tokens / max(output_tokens, 1.0)
    return step.base_s + step.decode_s * running + step.context_s * context_tokens + stalled


def _weighted_median(pairs: Sequence[tuple[float, int]]) -> float:
    ordered = sorted(pairs)
    half = sum(weight for _, weight in ordered) / 2
    for value, weight in ordered:
        half -= weight
        if half <= 0:
            return value
    return ordered[-1][0]


def _measured(value: float, prior: float) -> bool:
    # A fit leaves a term at its prior while no sample moved it: a prefill worker knows nothing of decode_s.
    return not isclose(value, prior, rel_tol=1e-6, abs_tol=0.0)


def _pooled(prior: float, values: Iterable[tuple[float, int]]) -> float:
    known = [(value, min(samples, _WEIGHT_CAP)) for value, samples in values if _measured(value, prior)]
    return _weighted_median(known) if known else prior


def pool(reports: Iterable[CostObservation]) -> dict[str, tuple[StepCost, TransferCost]]:
    """Per shape, each term's median over the workers that measured it, weighted by samples."""
    shapes: dict[str, list[CostObservation]] = {}
    for report in reports:
        shapes.setdefault(report.shape, []).append(report)
    out = {}
    for shape, members in shapes.items():
        stepped = [m for m in members if m.samples >= MEASURED_SAMPLES]
        moved = [m for m in members if m.transfers >= MEASURED_SAMPLES]
        step = StepCost(*(_pooled(getattr(PRIOR, n), [(getattr(m.step, n), m.samples) for m in stepped]) for n in _STEP_TERMS))
        transfer = TransferCost(
            *(
                _pooled(getattr(TRANSFER_PRIOR, n), [(getattr(m.transfer, n), m.transfers) for m in moved])
                for n in _TRANSFER_TERMS
            )
        )
        out[shape] = (step, transfer)
    return out


def settle(own: CostObservation | None, pooled: tuple[StepCost, TransferCost]) -> tuple[StepCost, TransferCost]:
    """A worker's costs: what it measured itself, term by term, else what its shape measured."""
    step, transfer = pooled
    if own is not None and own.samples >= MEASURED_SAMPLES:
        step = StepCost(*(_own(getattr(own.step, n), getattr(PRIOR, n), getattr(step, n)) for n in _STEP_TERMS))
    if own is not None and own.transfers >= MEASURED_SAMPLES:
        transfer = TransferCost(
            *(_own(getattr(own.transfer, n), getattr(TRANSFER_PRIOR, n), getattr(transfer, n)) for n in _TRANSFER_TERMS)
        )
    return step, transfer


def _own(value: float, prior: float, pooled: float) -> float:
    return value if _measured(value, prior) else pooled


_STEP_TERMS = tuple(f.name for f in fields(StepCost))
_TRANSFER_TERMS = tuple(f.name for f in fields(TransferCost))
