"""The engine's prefix cache as routers are told of it: a mirror for snapshots and sequenced deltas.

Promise: a router that takes a snapshot and every later delta holds exactly the mirror. Messages are encoded once, for all
routers. Synchronous, one owner, no I/O.
"""

import sys
from array import array
from collections.abc import Iterable

from penstock_proto.v1.fleet_pb2 import KvDelta, KvSnapshot, WorkerReport
from penstock_proto.v1.fleet_pb2 import KvOp as KvOpMessage
from penstock_workers.engine.protocol import KvOp

CHUNK_HASHES = (1 << 20) // 8 - 8  # with its head, a chunk stays under 1 MiB
_KINDS = {"stored": KvOpMessage.STORED, "removed": KvOpMessage.REMOVED, "cleared": KvOpMessage.CLEARED}


class KvFeed:
    def __init__(self) -> None:
        self.mirror: set[int] = set()
        self._next_seq = 1
        self._ops: list[KvOpMessage] = []

    @property
    def pending(self) -> bool:
        return bool(self._ops)

    def add(self, ops: Iterable[KvOp]) -> None:
        for op in ops:
            if op.kind == "stored":
                self.mirror.update(op.hashes)
            elif op.kind == "removed":
                self.mirror.difference_update(op.hashes)
            else:
                self.mirror.clear()
            self._ops.append(KvOpMessage(kind=_KINDS[op.kind], hashes=hash_bytes(op.hashes)))

    def flush(self) -> bytes | None:
        """The changes since the last flush as one encoded WorkerReport."""
        if not self._ops:
            return None
        delta = KvDelta(seq=self._next_seq, ops=self._ops)
        self._ops = []
        self._next_seq += 1
        return WorkerReport(delta=delta).SerializeToString()

    def snapshot(self) -> list[bytes]:
        """The mirror as encoded WorkerReports. Pending changes must have been flushed: the next delta follows this."""
        assert not self._ops, "flush before a snapshot"
        hashes = array("Q", self.mirror)
        parts = [hashes[i : i + CHUNK_HASHES] for i in range(0, max(len(hashes), 1), CHUNK_HASHES)]
        return [
            WorkerReport(
                snapshot=KvSnapshot(next_seq=self._next_seq, chunk=i, last=i == len(parts) - 1, hashes=hash_bytes(part))
            ).SerializeToString()
            for i, part in enumerate(parts)
        ]


def hash_bytes(hashes: "array[int]") -> bytes:
    if sys.byteorder == "big":
        hashes = hashes[:]
        hashes.byteswap()
    return hashes.tobytes()
