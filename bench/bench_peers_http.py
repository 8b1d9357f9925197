"""Closed-loop load over HTTP/1.1 keep-alive: one plain asyncio protocol per connection, answers kept and read afterwards.

Promise: while the clock runs nothing is parsed but what tells that an answer is complete, so that the load generator is not
the limit; afterwards every answer is looked at.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")
_END = b"\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HttpResult:
    """`heads` and `bodies` as they came; chunked bodies still in chunks."""

    requests: int
    wall_s: float
    latency_s: tuple[float, ...]
    heads: tuple[bytes, ...]
    bodies: tuple[bytes, ...]

    @property
    def errors(self) -> int:
        return self.requests - sum(head.startswith(b"HTTP/1.1 200") for head in self.heads)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts that the answers themselves state, summed."""

    prompt: int
    cached: int
    completion: int


def encode(host: str, prompt: str, max_tokens: int, *, stream: bool = False) -> bytes:
    body = json.dumps(
        {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": stream}
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection(asyncio.Protocol):
    def __init__(self, following: Callable[[], bytes | None]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answers: list[tuple[bytes, bytes, float]] = []
        self._following = following
        self._buffer = bytearray()
        self._head = self._total = 0
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self) -> None:
        request = self._following()
        if request is None:
            self._transport.close()
            return
        self._buffer = bytearray()
        self._head = self._total = 0
        self._began = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._head:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head = end + 4
            found = _LENGTH.search(buffer, 0, self._head)
            self._total = self._head + int(found[1]) if found else 0
            if not found and not _CHUNKED.search(buffer, 0, self._head):
                self._fail("an answer has neither a content-length nor chunks")
                return
        complete = len(buffer) >= self._total if self._total else buffer.endswith(_END)
        if complete:
            took = time.perf_counter() - self._began
            self.answers.append((bytes(buffer[: self._head]), bytes(buffer[self._head :]), took))
            self.send()

    def _fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(reason))
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done.done():
            return
        if exc is not None:
            self.done.set_exception(exc)
        else:
            self.done.set_result(None)  # a request that was cut off has no answer, and counts as an error


async def closed_loop(address: str, requests: list[bytes], concurrency: int) -> HttpResult:
    """Sends all requests, `concurrency` at a time; connections are opened before the clock starts."""
    host, _, port = address.rpartition(":")
    waiting = iter(requests)
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: _Connection(lambda: next(waiting, None)), host, int(port)))[1]
        for _ in range(min(concurrency, len(requests)))
    ]
    began = time.perf_counter()
    for connection in made:
        connection.send()
    await asyncio.gather(*(c.done for c in made))
    wall = time.perf_counter() - began
    answers = [a for c in made for a in c.answers]
    return HttpResult(
        len(requests), wall, tuple(a[2] for a in answers), tuple(a[0] for a in answers), tuple(a[1] for a in answers)
    )


def usage(result: HttpResult) -> Usage:
    """Of whole (not streamed) answers; an empty text is an error."""
    prompt = cached = completion = 0
    for body in result.bodies:
        answer = json.loads(body)
        if not answer["choices"][0]["text"]:
            raise ValueError("an answer has no text")
        told = answer["usage"]
        prompt += told["prompt_tokens"]
        completion += told["completion_tokens"]
        cached += (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(prompt, cached, completion)


def messages(result: HttpResult) -> int:
    """Server-sent events that carry text."""
    count = 0
    for body in result.bodies:
        text = re.sub(rb"(?:^|\r\n)[0-9a-fA-F]+\r\n", b"", body)
        events = [line[6:] for line in text.split(b"\n") if line.startswith(b"data: {")]
        count += sum(
            bool(json.loads(event)["choices"][0]["text"]) for event in events if b'"choices":[{' in event.replace(b" ", b"")
        )
        if b"data: [DONE]" not in text:
            raise ValueError("a stream has no end")
    return count
