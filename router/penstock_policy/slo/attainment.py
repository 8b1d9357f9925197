"""Whether an answer met its class's objectives, and counts of that.

Promise: an objective is judged once per answer, and only where it was asked for and could be measured.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds; None: no objective."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class Attained:
    """Per objective: met, missed, or None where it was not judged."""

    ttft: bool | None
    tpot: bool | None


@dataclass(frozen=True, slots=True)
class Tally:
    judged: int = 0
    attained: int = 0

    def count(self, met: bool | None) -> "Tally":
        if met is None:
            return self
        return replace(self, judged=self.judged + 1, attained=self.attained + met)


def tpot(ttft_s: float, last_token_s: float, tokens: int) -> float | None:
    """Mean seconds per token after the first; times since the request came. None with fewer than two tokens."""
    return (last_token_s - ttft_s) / (tokens - 1) if tokens > 1 else None


def attained(ttft_s: float | None, tpot_s: float | None, targets: Targets) -> Attained:
    """A request that ended without a first token through no fault of its caller missed its TTFT: pass infinity."""
    return Attained(
        None if targets.ttft_s is None or ttft_s is None else ttft_s <= targets.ttft_s,
        None if targets.tpot_s is None or tpot_s is None else tpot_s <= targets.tpot_s,
    )
