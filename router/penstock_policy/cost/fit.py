"""Fits a worker's cost terms to the steps it takes: recursive least squares, never negative.

Promise: `fit(state, sample) -> state'` in bounded time and memory; terms stay finite and >= 0 whatever the samples
are; a term that no sample touches keeps its value.

Three choices make it robust:
1. Relative errors are minimised (weight 1 / observed squared), so a 1 ms decode step counts as a 300 ms prefill.
2. Old samples fade by FORGET per sample, and the terms are held lightly to their present values, so that hours of
   decode steps do not erase what a prefill costs.
3. An observation is clipped to within CLIP of the recent median ratio of observed to predicted: a pause of the
   machine is one bounded outlier, while a lasting change moves the median and is followed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

from penstock_policy.cost.model import PRIOR, TRANSFER_PRIOR, StepCost, TransferCost

FORGET = 0.998  # half of the weight lies in the last 350 samples
CLIP = 3.0
WINDOW = 128  # samples behind the error quantiles
_MEDIAN_OF = 33  # ratios behind the clipping median
_HOLD = 1e-3  # weight that holds a term to its value, in samples of its typical size
_SOLVE_ALWAYS_BELOW = 64  # samples; later every _SOLVE_EVERY-th sample solves
_SOLVE_EVERY = 8
_SWEEPS = 24


@dataclass(frozen=True, slots=True)
class StepSample:
    duration_s: float
    prefill_tokens: int
    decodes: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class TransferSample:
    duration_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class FitState:
    """Terms and what they rest on. `gram` and `moment` are the faded sums of x*x' and x*y over weighted samples."""

    terms: tuple[float, ...]
    gram: tuple[float, ...]  # row by row, full
    moment: tuple[float, ...]
    samples: int = 0
    errors: tuple[float, ...] = ()  # |predicted - observed| / observed, oldest first
    ratios: tuple[float, ...] = ()  # observed / predicted

    def step(self) -> StepCost:
        return StepCost(*self.terms)

    def transfer(self) -> TransferCost:
        return TransferCost(*self.terms)

    def error(self, quantile: float) -> float:
        """A quantile of the relative errors of the last predictions, each made before its sample was used."""
        if not self.errors:
            return 0.0
        ordered = sorted(self.errors)
        return ordered[min(len(ordered) - 1, int(len(ordered) * quantile))]


def _start(terms: tuple[float, ...]) -> FitState:
    size = len(terms)
    return FitState(terms, (0.0,) * (size * size), (0.0,) * size)


def start_step() -> FitState:
    return _start((PRIOR.base_s, PRIOR.prefill_s, PRIOR.decode_s, PRIOR.context_s))


def start_transfer() -> FitState:
    return _start((TRANSFER_PRIOR.base_s, TRANSFER_PRIOR.token_s))


def fit(state: FitState, sample: StepSample) -> FitState:
    """Steps without work or without a known duration tell nothing and change nothing."""
    if not sample.prefill_tokens and not sample.decodes:
        return state
    return _observe(state, (1.0, sample.prefill_tokens, sample.decodes, sample.context_tokens), sample.duration_s)


def fit_transfer(state: FitState, sample: TransferSample) -> FitState:
    if not sample.tokens:
        return state
    return _observe(state, (1.0, sample.tokens), sample.duration_s)


def _observe(state: FitState, x: Sequence[float], seconds: float) -> FitState:
    if not (isfinite(seconds) and seconds > 0):
        return state
    predicted = sum(a * b for a, b in zip(state.terms, x, strict=True))
    ratio = seconds / max(predicted, 1e-9)
    ratios = (*state.ratios[1 - _MEDIAN_OF :], ratio)
    if len(ratios) == _MEDIAN_OF:
        middle = sorted(ratios)[_MEDIAN_OF // 2]
        ratio = min(max(ratio, middle / CLIP), middle * CLIP)
        seconds_used = ratio * max(predicted, 1e-9)
    else:
        seconds_used = seconds
    weight = 1.0 / (seconds_used * seconds_used)
    weighted = [weight * a for a in x]
    gram = tuple(FORGET * old + new for old, new in zip(state.gram, (wa * b for wa in weighted for b in x), strict=True))
    moment = tuple(FORGET * old + wa * seconds_used for old, wa in zip(state.moment, weighted, strict=True))
    samples = state.samples + 1
    terms = state.terms
    if samples < _SOLVE_ALWAYS_BELOW or samples % _SOLVE_EVERY == 0:
        terms = _solve(terms, gram, moment)
    errors = (*state.errors[1 - WINDOW :], abs(predicted - seconds) / seconds)
    return replace(state, terms=terms, gram=gram, moment=moment, samples=samples, errors=errors, ratios=ratios)


def _solve(terms: tuple[float, ...], gram: tuple[float, ...], moment: tuple[float, ...]) -> tuple[float, ...]:
    """Non-negative least squares by cyclic coordinate descent from the present terms.

    Each coordinate is held to its present value by a small part of its own curvature (and by a floor where it has
    none), which also makes the descent contract when samples are collinear.
    """
    size = len(terms)
    out = list(terms)
    for _ in range(_SWEEPS):
        moved = 0.0
        for i in range(size):
            row = gram[i * size : i * size + size]
            curve = row[i]
            if curve <= 0.0:
                continue
            hold = _HOLD * curve
            rest = sum(a * b for a, b in zip(row, out, strict=True)) - curve * out[i]
            value = max(0.0, (moment[i] - rest + hold * terms[i]) / (curve + hold))
            moved = max(moved, abs(value - out[i]) * curve**0.5)
            out[i] = value
        if moved < 1e-9:
            break
    return tuple(out)
