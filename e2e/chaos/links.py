"""TCP between a router and a worker, with a hand on it.

Promise: what passes is never changed or reordered. A black hole takes connections and gives nothing back, neither octets nor
ends, until it is closed; then what TCP would have kept is delivered.
"""

import asyncio
import socket
import struct
from collections import deque
from typing import cast

RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close sends RST


class _End(asyncio.Protocol):
    """One side of a passage."""

    def __init__(self, passage: "_Passage") -> None:
        self.passage = passage
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self.passage.made(self)

    def data_received(self, data: bytes) -> None:
        self.passage.pass_on(self, data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.passage.close()


class _Passage:
    """An accepted connection and the one dialled for it."""

    def __init__(self, link: "Link") -> None:
        self.link = link
        self.near = _End(self)
        self.far: _End | None = None
        self.early: list[bytes] = []
        self.closed = False
        self._late: deque[tuple[_End, bytes]] = deque()
        self._dial: asyncio.Task[None] | None = None

    def made(self, end: _End) -> None:
        if end is self.near:
            self.link.passages.add(self)
            if self.link.hole:
                self.pause()
            else:
                self.dial()

    def dial(self) -> None:
        if self._dial is None and not self.closed:
            self._dial = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        host, _, port = self.link.target.rpartition(":")
        far = _End(self)
        try:
            await asyncio.get_running_loop().create_connection(lambda: far, host, int(port))
        except OSError:
            self.reset()
            return
        self.far = far
        if self.closed and far.transport is not None:
            far.transport.abort()
            return
        early, self.early = self.early, []
        for data in early:
            self._write(far, data)
        if self.link.hole:
            self.pause()

    def pass_on(self, source: _End, data: bytes) -> None:
        target = self.far if source is self.near else self.near
        if target is None:
            self.early.append(data)
        elif self.link.lag_s:
            self._late.append((target, data))
            asyncio.get_running_loop().call_later(self.link.lag_s, self._write_late)
        elif self._late:
            self._late.append((target, data))
            asyncio.get_running_loop().call_soon(self._write_late)
        else:
            self._write(target, data)

    def _write_late(self) -> None:
        """In order: whoever comes first writes what is first."""
        if self._late:
            self._write(*self._late.popleft())

    def _write(self, target: _End, data: bytes) -> None:
        if target.transport is not None and not target.transport.is_closing():
            target.transport.write(data)

    def _ends(self) -> list[asyncio.Transport]:
        return [e.transport for e in (self.near, self.far) if e is not None and e.transport is not None]

    def pause(self) -> None:
        for transport in self._ends():
            if not transport.is_closing():
                transport.pause_reading()

    def resume(self) -> None:
        self.dial()
        for transport in self._ends():
            if not transport.is_closing():
                transport.resume_reading()

    def reset(self) -> None:
        for transport in self._ends():
            sock = transport.get_extra_info("socket")
            if sock is not None and not transport.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.link.passages.discard(self)
        while self._late:
            self._write_late()
        for transport in self._ends():
            transport.close()


class Link:
    """Listens on loopback and passes connections on to `target`."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.hole = False
        self.lag_s = 0.0
        self.address = ""
        self.passages: set[_Passage] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Passage(self).near, "127.0.0.1", 0, backlog=256)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for passage in list(self.passages):
            passage.close()

    # Faults.

    def cut(self) -> None:
        for passage in list(self.passages):
            passage.reset()

    def start_hole(self) -> None:
        self.hole = True
        for passage in self.passages:
            passage.pause()

    def end_hole(self) -> None:
        self.hole = False
        for passage in list(self.passages):
            passage.resume()
