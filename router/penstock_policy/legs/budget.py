"""How many requests may be tried again: retries cannot multiply load.

Promise: over any history retries <= FLOOR + RATIO * requests opened. Each request pays RATIO of a retry in when it
opens, each retry takes one out; what is saved up is bounded by RATIO of the active requests, never under FLOOR.
"""

from dataclasses import dataclass, replace

RATIO = 0.2
FLOOR = 3.0
MAX_ATTEMPTS = 3  # placements of a request before its first token
MAX_LOSSES = 10  # workers that failed under one stream: beyond, it may be what kills them
MAX_ATTEMPTS_BEGUN = 8  # placements without a new token, of a stream that the client has a part of


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """One per model pool; the router's edge keeps the latest value."""

    active: int = 0
    saved: float = FLOOR

    def opened(self) -> "RetryBudget":
        active = self.active + 1
        return RetryBudget(active, min(self.saved + RATIO, _most(active)))

    def closed(self) -> "RetryBudget":
        active = max(0, self.active - 1)
        return RetryBudget(active, min(self.saved, _most(active)))

    def allows(self) -> bool:
        return self.saved >= 1.0

    def spent(self) -> "RetryBudget":
        return replace(self, saved=self.saved - 1.0)


def _most(active: int) -> float:
    return max(FLOOR, RATIO * active)
