"""vLLM's KV-cache events, read from its ZMQ publisher as `KvOp`s in order.

Promise: no event is lost silently: a gap in the sequence is replayed from the publisher's buffer, and where the
buffer is too short the reader says "cleared" and goes on, so that a view built from the ops never claims a block
that is not there. Single-group models: vLLM numbers groups from 0, and only group 0 is read.
"""

import asyncio
import logging
from array import array
from collections.abc import Callable
from typing import Any

import msgspec
from zmq.asyncio import Context
from zmq.constants import DEALER, RECONNECT_IVL, SUB

from penstock_workers.engine.protocol import KvOp

logger = logging.getLogger(__name__)

_END = (1 << 64) - 1  # -1 as vLLM writes it after a replay
_REPLAY_TIMEOUT_S = 2.0


class _Stored(msgspec.Struct, tag="BlockStored"):
    block_hashes: list[int]
    group_idx: int | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[int]
    group_idx: int | None = None


class _Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[_Stored | _Removed | _Cleared]


_decode = msgspec.msgpack.Decoder(_Batch).decode


def ops_of(payload: bytes) -> list[KvOp]:
    """Adjacent events of one kind become one op."""
    ops: list[KvOp] = []
    for event in _decode(payload).events:
        if isinstance(event, _Cleared):
            ops.append(KvOp("cleared", array("Q")))
            continue
        if event.group_idx:
            continue
        kind = "stored" if isinstance(event, _Stored) else "removed"
        if ops and ops[-1].kind == kind:
            ops[-1].hashes.extend(event.block_hashes)
        else:
            ops.append(KvOp(kind, array("Q", event.block_hashes)))  # type: ignore[arg-type]
    return ops


class KvEventReader:
    """Reads one engine's events on the running loop until closed."""

    def __init__(self, endpoint: str, replay_endpoint: str, on_ops: Callable[[list[KvOp]], None]) -> None:
        self._endpoint, self._replay_endpoint, self._on_ops = endpoint, replay_endpoint, on_ops
        self._next = 0
        self._task: asyncio.Task[None] | None = None
        self._context = Context()

    def start(self) -> None:
        """Before the engine starts: a subscriber that joins late misses what came before."""
        socket = self._context.socket(SUB)
        socket.set_hwm(0)
        socket.setsockopt(RECONNECT_IVL, 20)
        socket.subscribe(b"kv")
        socket.connect(self._endpoint)
        self._task = asyncio.get_running_loop().create_task(self._read(socket), name="kv-events")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self._context.destroy(linger=0)

    async def _read(self, socket: Any) -> None:
        try:
            while True:
                _, sequence, payload = await socket.recv_multipart()
                number = int.from_bytes(sequence, "big")
                if number > self._next:
                    await self._fill(number)
                if number == self._next:  # an older one came with a replay already
                    self._next = number + 1
                    self._on_ops(ops_of(payload))
        finally:
            socket.close(linger=0)

    async def _fill(self, upto: int) -> None:
        """Replays [next, upto); where the buffer no longer has it, starts over from an empty view."""
        logger.warning("KV events %d to %d are missing: replaying", self._next, upto - 1)
        try:
            async with asyncio.timeout(_REPLAY_TIMEOUT_S):
                await self._replay(upto)
        except TimeoutError:
            logger.warning("the KV event replay did not answer within %g s", _REPLAY_TIMEOUT_S)
        if self._next < upto:
            logger.warning("KV events %d to %d are lost: the view starts over", self._next, upto - 1)
            self._on_ops([KvOp("cleared", array("Q"))])
            self._next = upto

    async def _replay(self, upto: int) -> None:
        socket = self._context.socket(DEALER)
        try:
            socket.connect(self._replay_endpoint)
            await socket.send_multipart([b"", self._next.to_bytes(8, "big")])
            while True:
                *_, sequence, payload = await socket.recv_multipart()
                number = int.from_bytes(sequence, "big")
                if number == _END:
                    return
                if number == self._next and number < upto:
                    self._next = number + 1
                    self._on_ops(ops_of(payload))
        finally:
            socket.close(linger=0)
