"""Several prompts of one completion request as one answer.

Promise: `next` as an Answer has it ([] at the end, a fault raised). When it ends, however it ends, every
part has been left, so the dispatcher cancels what still runs.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from ..faults import Fault
from ..request import Request
from .http_sources import Answer, Dispatcher


class Fan:
    """`async with Fan(dispatcher, requests) as answer`: choice i of prompt p has index p * n + i."""

    def __init__(self, dispatcher: Dispatcher, requests: Sequence[Request], deadline: float | None = None) -> None:
        self.dispatcher = dispatcher
        self.requests = requests
        self.deadline = deadline
        self.answers: list[Answer] = []
        self.reads: dict[asyncio.Task[list[Any]], int] = {}
        self.stack = AsyncExitStack()
        self.failed = 0  # the prompt whose fault was raised

    async def __aenter__(self) -> Self:
        try:
            for prompt, request in enumerate(self.requests):
                self.failed = prompt
                identity = f"{request.identity}-{prompt}" if request.identity else ""
                part = replace(request, request_id=f"{request.request_id}-{prompt}", identity=identity)
                self.answers.append(await self.stack.enter_async_context(self.dispatcher.answer(part, self.deadline)))
            for prompt in range(len(self.answers)):
                self.read(prompt)
        except BaseException:
            await self.stack.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for read in self.reads:
            read.cancel()
        await asyncio.gather(*self.reads, return_exceptions=True)
        await self.stack.__aexit__(kind, error, trace)

    @property
    def model(self) -> str:
        return self.answers[0].model

    @property
    def created(self) -> float:
        return self.answers[0].created

    def read(self, prompt: int) -> None:
        self.reads[asyncio.ensure_future(next_deltas(self.answers[prompt]))] = prompt

    async def next(self) -> list[Any]:
        deltas: list[Any] = []
        while self.reads and not deltas:
            done, _ = await asyncio.wait(self.reads, return_when=asyncio.FIRST_COMPLETED)
            for read in done:
                prompt = self.reads.pop(read)
                try:
                    part = read.result()
                except Fault:
                    self.failed = prompt
                    raise
                if part:
                    first = prompt * self.requests[0].n
                    deltas += [replace(delta, index=first + delta.index) for delta in part]
                    self.read(prompt)
        return deltas


async def next_deltas(answer: Answer) -> list[Any]:
    return list(await answer.next())
