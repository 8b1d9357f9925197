"""Requests that a client named: each is answered once.

Promise: an id that is open here is not opened again, nor one whose answer began within the last `ttl_s`, here or, as
workers tell, through another router; an id whose request ended here before its first token is free again at once. At most
`limit` ids are remembered, the oldest forgotten first. Ids that routers make are never looked up.

A name is what a client gives as identity: GenerateRequest.request_id, the HTTP body's `request_id`, an Idempotency-Key.
HTTP's x-request-id is none: proxies set it, and meshes ask programs to send one value with everything that they ask for.
"""

from array import array
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from .faults import AlreadyExists

LIMIT: Final = 16_384
TTL_S: Final = 600.0


def mark_of(name: str) -> int:
    """What workers and other routers know a name by: 64 bits, never 0; 0 for no name."""
    if not name:
        return 0
    return int.from_bytes(blake2b(name.encode(), digest_size=8, person=b"penstock").digest(), "little") or 1


class RequestIds:
    """Names that are open here, and marks of those whose answers began. One owner, synchronous."""

    __slots__ = ("_began", "_free", "_limit", "_open", "_ttl_s")

    def __init__(self, limit: int = LIMIT, ttl_s: float = TTL_S) -> None:
        self._limit = limit
        self._ttl_s = ttl_s
        self._open: dict[str, int] = {}  # name -> how many times: a retry may overlap what it stands for
        self._began: dict[int, float] = {}  # mark -> when it was heard of, oldest first
        self._free: dict[int, float] = {}  # marks of requests that ended here without a token, oldest first

    def open(self, name: str, now: float, *, retry: bool = False, field: str = "request_id") -> None:
        """Raises AlreadyExists. `retry`: the client says that it got nothing of its attempts before this one."""
        if not retry and name in self._open:
            raise AlreadyExists(field, "is open at this router: its stream cannot be joined; wait for its end or send a new id")
        mark = mark_of(name)
        if not retry and mark not in self._free and now - self._began.get(mark, now - self._ttl_s) < self._ttl_s:
            what = "its answer began already, here or through another router, and cannot be joined"
            raise AlreadyExists(field, f"{what}; send a new id to generate again")
        self._free.pop(mark, None)
        self._open[name] = self._open.get(name, 0) + 1

    def closed(self, name: str, now: float, *, began: bool) -> None:
        """As often as `open` returned."""
        left = self._open.pop(name, 1) - 1
        if left:
            self._open[name] = left
        mark = mark_of(name)
        if began:
            self._free.pop(mark, None)
            self._remember(self._began, (mark,), now)
        elif not left:
            self._remember(self._free, (mark,), now)

    def told(self, hashes: bytes, now: float) -> None:
        """A worker's SeenRequests."""
        marks = array("Q")
        marks.frombytes(hashes[: len(hashes) & ~7])
        self._remember(self._began, marks[-self._limit :], now)

    def __len__(self) -> int:
        return len(self._open) + len(self._began) + len(self._free)

    @property
    def open_names(self) -> int:
        return len(self._open)

    def _remember(self, table: dict[int, float], marks: Iterable[int], now: float) -> None:
        for mark in marks:
            table.pop(mark, None)
            table[mark] = now
        while table:
            oldest = next(iter(table))
            if len(table) <= self._limit and now - table[oldest] < self._ttl_s:
                break
            del table[oldest]
