"""Which requests began on this worker, by the marks that routers gave them.

Promise: each mark is told once as new and, until it is older than `ttl_s` or one of more than `limit`, with all the others
to a router that joins: so no router answers again what another has begun to answer. No clock: time is an argument.
"""

from collections.abc import Iterable

LIMIT = 16_384
TTL_S = 600.0


class Seen:
    """Mutable, one owner, synchronous."""

    def __init__(self, limit: int = LIMIT, ttl_s: float = TTL_S) -> None:
        self._limit = limit
        self._ttl_s = ttl_s
        self._marks: dict[int, float] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._marks)

    def note(self, marks: Iterable[int], now: float) -> bytes:
        """Those of them that are new, as SeenRequests has it; empty: none."""
        new = [mark for mark in dict.fromkeys(marks) if mark not in self._marks]
        for mark in new:
            self._marks[mark] = now
        self._forget(now)
        return _bytes(new)

    def all(self, now: float) -> bytes:
        self._forget(now)
        return _bytes(self._marks)

    def _forget(self, now: float) -> None:
        while self._marks:
            oldest = next(iter(self._marks))
            if len(self._marks) <= self._limit and now - self._marks[oldest] < self._ttl_s:
                break
            del self._marks[oldest]


def _bytes(marks: Iterable[int]) -> bytes:
    return b"".join(mark.to_bytes(8, "little") for mark in marks)
