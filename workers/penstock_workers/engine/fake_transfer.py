"""KV transfer between fake engines: what is held, and how another engine asks for it.

Promise: KV is given once, only while its lease lasts and only for exactly the tokens held; everything else is refused with a
reason. Engines of one process ask each other directly, engines of one machine by a datagram on loopback.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar
from weakref import WeakValueDictionary
from zlib import crc32

from penstock_workers.engine.fake_cache import Block

_ASK_TIMEOUT_S = 0.25
_ASK_TRIES = 3


class TransferRefused(ValueError):
    """The KV cannot be had; computing is right."""


@dataclass(frozen=True, slots=True)
class KvParams:
    """What the holder gives away about KV it holds."""

    engine: str
    request: str
    num_tokens: int
    blocks: int
    digest: int  # crc32 of the tokens covered
    port: int

    def encode(self) -> bytes:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, params: bytes) -> "KvParams":
        try:
            fields = json.loads(params)
            return cls(**{name: kind(fields[name]) for name, kind in _FIELDS.items()})
        except (ValueError, KeyError, TypeError) as error:
            raise TransferRefused("the KV's parameters are not those of a fake engine") from error


_FIELDS: dict[str, type] = {"engine": str, "request": str, "num_tokens": int, "blocks": int, "digest": int, "port": int}


def covered(params: KvParams, data: bytes, block_size: int) -> None:
    """Refuses KV that is not of these token bytes."""
    tokens = params.num_tokens
    if not 0 < tokens < len(data) // 4:
        raise TransferRefused(f"the KV covers {tokens} tokens, the leg has {len(data) // 4}")
    if params.blocks != -(-tokens // block_size):
        raise TransferRefused(f"{params.blocks} blocks of {block_size} cannot hold {tokens} tokens")
    if crc32(data[: 4 * tokens]) != params.digest:
        raise TransferRefused("the KV covers other tokens than the leg's")


@dataclass(slots=True)
class _Held:
    blocks: list[Block]
    num_tokens: int
    timer: asyncio.TimerHandle
    pulled: bool = False


class Holder:
    """The KV that one engine holds for others."""

    _of_process: ClassVar["WeakValueDictionary[str, Holder]"] = WeakValueDictionary()

    def __init__(self, engine: str, free: Callable[[list[Block]], None], expired: Callable[[], None]) -> None:
        self.engine = engine
        self._free = free
        self._expired = expired
        self._held: dict[str, _Held] = {}
        self._socket: socket.socket | None = None
        self.pulls = 0
        Holder._of_process[engine] = self

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, request: str, blocks: list[Block], data: bytes, lease_s: float) -> bytes:
        """Pins blocks that cover the token bytes; returns the parameters to pull them with."""
        timer = asyncio.get_running_loop().call_later(lease_s, self._expire, request)
        tokens = len(data) // 4
        self._held[request] = _Held(blocks, tokens, timer)
        return KvParams(self.engine, request, tokens, len(blocks), crc32(data), self._port()).encode()

    def pull(self, request: str, num_tokens: int) -> str:
        """Starts a pull; returns why not."""
        held = self._held.get(request)
        if held is None:
            return "the KV is not held: its lease is over, or it was pulled or released"
        if held.pulled:
            return "the KV is being pulled by somebody else"
        if held.num_tokens != num_tokens:
            return f"the KV covers {held.num_tokens} tokens, {num_tokens} were asked for"
        held.pulled = True
        return ""

    def release(self, request: str, *, pulled: bool = False) -> str:
        held = self._held.pop(request, None)
        if held is None:
            return "the KV is not held"
        self.pulls += pulled
        held.timer.cancel()
        self._free(held.blocks)
        return ""

    def _expire(self, request: str) -> None:
        held = self._held.pop(request, None)
        if held is not None:
            self._expired()
            self._free(held.blocks)

    def close(self) -> None:
        for held in self._held.values():
            held.timer.cancel()
        self._held.clear()
        Holder._of_process.pop(self.engine, None)
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _port(self) -> int:
        if self._socket is None:
            self._socket = _loopback()
            asyncio.get_running_loop().add_reader(self._socket, self._answer, self._socket)
        return int(self._socket.getsockname()[1])

    def _answer(self, sock: socket.socket) -> None:
        data, sender = sock.recvfrom(4096)
        question = json.loads(data)
        sock.sendto(json.dumps({"number": question["number"], "why": self.serve(question)}).encode(), sender)

    def serve(self, question: dict[str, Any]) -> str:
        match question["verb"]:
            case "pull":
                return self.pull(question["request"], question["num_tokens"])
            case "done":
                return self.release(question["request"], pulled=True)
            case _:
                return self.release(question["request"])


def _loopback() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    return sock


_numbers = count(1)


async def ask(params: KvParams, verb: str) -> None:
    """Asks the holder to `pull`, to note a pull `done`, or to `release`; raises TransferRefused."""
    question = {"verb": verb, "request": params.request, "num_tokens": params.num_tokens, "number": next(_numbers)}
    near = Holder._of_process.get(params.engine)
    why = near.serve(question) if near is not None else await _ask_far(params.port, question)
    if why:
        raise TransferRefused(why)


async def _ask_far(port: int, question: dict[str, Any]) -> str:
    loop = asyncio.get_running_loop()
    data = json.dumps(question).encode()
    with _loopback() as sock:
        try:
            await loop.sock_connect(sock, ("127.0.0.1", port))
            for _ in range(_ASK_TRIES):
                await loop.sock_sendall(sock, data)
                try:
                    async with asyncio.timeout(_ASK_TIMEOUT_S):
                        return str(json.loads(await loop.sock_recv(sock, 4096))["why"])
                except TimeoutError:
                    continue
        except OSError as error:
            return f"the holder does not answer: {error.strerror}"
    return "the holder does not answer"
