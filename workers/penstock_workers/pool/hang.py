"""When an engine that says nothing is held for dead.

Promise: pure. An engine hangs when it was asked for a sign of life and has given none, no step and no answer, for longer than
`limit_s`: ten times what the step in flight is predicted to take, with that step's own prompt tokens, and never less than a
floor. Time in which the watcher itself did not run does not count, so a paused machine or a busy loop is no hang.

An engine answers between two steps, whatever its legs wait for: a pull from a slow peer or a grammar that compiles in a thread
is work without a step, and no hang.
"""

from dataclasses import dataclass, replace
from typing import Literal

from penstock_policy.cost.model import MEASURED_SAMPLES, StepCost

FACTOR = 10.0
_ASK_AFTER_S = 1.0  # of silence
_ASK_WITHIN = 0.25  # of the floor, where that is sooner
_EXTRAPOLATED = 16  # a step of so many times the largest prefill measured is one that nothing is known of

Decision = Literal["wait", "ask", "hung"]


@dataclass(frozen=True, slots=True)
class Limits:
    floor_s: float
    unmeasured_s: float  # for a step whose like was not measured: a first compilation, the first long prompt


@dataclass(frozen=True, slots=True)
class InFlight:
    """The most that the step in flight can hold, as the engine's last figures say."""

    prefill_tokens: int = 0
    decodes: int = 0
    context_tokens: int = 0
    most_tokens: int = 1 << 31  # that one step can compute


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of this engine's steps."""

    cost: StepCost
    samples: int


@dataclass(frozen=True, slots=True)
class Watch:
    silent_s: float = 0.0  # since the last sign of life, as the watcher lived it
    asked: bool = False
    looked_at: float | None = None
    largest_prefill: int = 0  # tokens of a step that was measured
    new_tokens: int = 0  # of legs that came since the engine's last word, and that the step in flight may hold
    late_tokens: int = 0  # of legs that came while a question was out: the step in flight began before them


def arrived(watch: Watch, tokens: int) -> Watch:
    """A leg was given to the engine."""
    if watch.asked:
        return replace(watch, late_tokens=watch.late_tokens + tokens)
    return replace(watch, new_tokens=watch.new_tokens + tokens)


def stepped(watch: Watch, prefill_tokens: int = 0) -> Watch:
    """The engine has made a step, or has said something of one."""
    return replace(watch, silent_s=0.0, largest_prefill=max(watch.largest_prefill, prefill_tokens))


def counted(watch: Watch) -> Watch:
    """The engine's figures hold every leg that has arrived."""
    return replace(watch, new_tokens=0, late_tokens=0)


def answered(watch: Watch) -> Watch:
    return replace(watch, silent_s=0.0, asked=False, new_tokens=watch.new_tokens + watch.late_tokens, late_tokens=0)


def limit_s(watch: Watch, work: InFlight, known: Measured, limits: Limits) -> float:
    """How long the engine may say nothing now."""
    prefill = min(work.prefill_tokens + watch.new_tokens, work.most_tokens)
    if known.samples < MEASURED_SAMPLES or prefill > _EXTRAPOLATED * watch.largest_prefill:
        return max(limits.floor_s, limits.unmeasured_s)
    return max(limits.floor_s, FACTOR * known.cost.step_s(prefill, work.decodes, work.context_tokens))


def look(
    watch: Watch, now: float, every_s: float, work: InFlight, known: Measured, limits: Limits
) -> tuple[Watch, Decision]:  # fmt: skip
    """To be called every `every_s`; a look that comes late counts as at most two."""
    passed = 0.0 if watch.looked_at is None else min(max(0.0, now - watch.looked_at), 2 * every_s)
    watch = replace(watch, silent_s=watch.silent_s + passed, looked_at=now)
    if not watch.asked:
        if watch.silent_s < min(_ASK_AFTER_S, _ASK_WITHIN * limits.floor_s):
            return watch, "wait"
        return replace(watch, asked=True), "ask"
    return watch, "hung" if watch.silent_s > limit_s(watch, work, known, limits) else "wait"
