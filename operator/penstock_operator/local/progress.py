"""What a person waiting for a local service is told, and when it is ready.

Promise: pure. Observations go in with the time; lines come out, each once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_REPEAT_S = 5.0


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker as the router sees it."""

    worker_id: str
    pool: str
    state: str


def missing(expected: Mapping[str, int], workers: Sequence[Joined]) -> dict[str, int]:
    """Pools that still lack ready workers -> how many."""
    ready = {pool: sum(one.pool == pool and one.state == "ready" for one in workers) for pool in expected}
    return {pool: wanted - ready[pool] for pool, wanted in expected.items() if ready[pool] < wanted}


@dataclass(slots=True)
class Narrator:
    """Turns what happens during a start into lines."""

    expected: Mapping[str, int]
    started_s: float
    _told_s: float = 0.0
    _joined: set[str] = field(default_factory=set)
    _phases: dict[str, tuple[str, float]] = field(default_factory=dict)  # pool -> what it does, since when
    _messages: set[str] = field(default_factory=set)

    def event(self, event: Mapping[str, Any], now_s: float) -> list[str]:
        """What the Ray host says."""
        name = event["event"]
        if name == "ray":
            return self._say("Ray is up", now_s)
        if name == "deployed":
            for pool in self.expected:
                self._phases[pool] = ("waits for Ray to place it", now_s)
            pools = ", ".join(f"{count} {pool}" for pool, count in self.expected.items())
            return self._say(f"starting workers: {pools}", now_s)
        if name == "serve":
            return self._serve(event, now_s)
        return []

    def _serve(self, event: Mapping[str, Any], now_s: float) -> list[str]:
        lines = []
        for pool, found in event["pools"].items():
            replicas = found["replicas"]
            phase = "runs" if replicas.get("RUNNING") else "loads its engine" if replicas.get("STARTING") else ""
            if phase and self._phases.get(pool, ("", 0.0))[0] != phase:
                self._phases[pool] = (phase, now_s)
            trouble = found["message"] if "fail" in found["message"].lower() else ""
            if trouble and trouble not in self._messages:
                self._messages.add(trouble)
                lines += self._say(f"{pool}: {_last_line(trouble)}", now_s)
        return lines

    def workers(self, workers: Sequence[Joined], now_s: float) -> list[str]:
        """What the router says."""
        lines = []
        for one in workers:
            if one.state == "ready" and one.worker_id not in self._joined:
                self._joined.add(one.worker_id)
                lines += self._say(f"worker {one.worker_id} ({one.pool}) is ready", now_s)
        return lines

    def waiting(self, lacking: Mapping[str, int], now_s: float) -> list[str]:
        """Every few seconds of silence: what is still awaited."""
        if now_s - max(self._told_s, self.started_s) < _REPEAT_S:
            return []
        parts = []
        for pool, count in lacking.items():
            phase, since_s = self._phases.get(pool, ("waits for Ray", self.started_s))
            number = f"{count} " if self.expected[pool] > 1 else ""
            parts.append(f"{number}{pool} {phase} ({now_s - since_s:.0f} s)")
        return self._say("; ".join(parts), now_s) if parts else []

    def _say(self, text: str, now_s: float) -> list[str]:
        self._told_s = now_s
        return [f"[{now_s - self.started_s:5.1f} s] {text}"]


def _last_line(text: str) -> str:
    """Of a traceback, the line that says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


@dataclass(frozen=True, slots=True)
class Restarts:
    """How often a child died lately."""

    deaths: int = 0
    last_s: float = 0.0


def restart(history: Restarts, lived_s: float, now_s: float) -> tuple[Restarts, float]:
    """How long to wait before the next start: at once after a long life, up to 5 s after short ones."""
    deaths = 0 if lived_s >= 30 else history.deaths
    wait_s = 0.0 if deaths == 0 else min(5.0, 0.2 * 2 ** (deaths - 1))
    return Restarts(deaths + 1, now_s), wait_s
