"""Figures of a run: percentiles, a memory slope, and counters of processes that come and go."""

import re
from collections.abc import Iterable, Sequence

_LABELS = re.compile(r'(\w+)="([^"]*)"')


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """p50, p90, p99 and the maximum, of the nearest rank; zeros without values."""
    ranked = sorted(values)
    if not ranked:
        return {"p50": 0.0, "p90": 0.0, "p99": 0.0, "max": 0.0}

    def at(quantile: float) -> float:
        return round(ranked[min(len(ranked) - 1, int(quantile * len(ranked)))], 4)

    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": round(ranked[-1], 4)}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares, y per x; 0 with fewer than two different x."""
    if not points:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


class Counters:
    """Sums over incarnations: what a process had counted when it was last asked is kept when it goes."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], dict[str, float]] = {}

    def saw(self, process: str, incarnation: int, samples: dict[str, float]) -> None:
        if samples:
            self._last[process, incarnation] = samples

    def total(self, name: str) -> dict[str, float]:
        """By labels, written as in the exposition; those of equal labels are added."""
        out: dict[str, float] = {}
        for samples in self._last.values():
            for key, value in samples.items():
                base, _, labels = key.partition("{")
                if base == name and value:
                    label = ",".join(v for _, v in _LABELS.findall(labels))
                    out[label] = out.get(label, 0.0) + value
        return dict(sorted(out.items()))
