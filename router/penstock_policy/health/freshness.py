"""Which workers may get new work, by when they were last heard from.

Promise: a worker that was silent for longer than `stale_after_s` gets none, unless that would leave fewer than
`panic_threshold` of all workers: then silence says more about us than about them, and every worker counts as fresh.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    fresh: frozenset[int]
    panic: bool  # staleness is being ignored
    stale: frozenset[int] = frozenset()  # silent ones, those that panic lets pass included


def classify(last_heard: Mapping[int, float], now: float, stale_after_s: float = 1.0, panic_threshold: float = 0.5) -> Verdict:
    """`last_heard` maps a worker's slot to the monotonic time of its last report."""
    stale = frozenset(slot for slot, heard in last_heard.items() if now - heard > stale_after_s)
    everyone = frozenset(last_heard)
    fresh = everyone - stale
    if stale and len(fresh) < panic_threshold * len(everyone):
        return Verdict(everyone, True, stale)
    return Verdict(fresh, False, stale)
