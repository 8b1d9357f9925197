"""Requests that wait: for a model to be known, or for a worker that can run them.

Promise: a waiting request is tried again on every change of the fleet and ends by its own deadline or hold time; the
number that wait is bounded.
"""

import asyncio
from typing import TYPE_CHECKING

from .choice import Choice
from .faults import Expired, Shed, Unavailable
from .request import Request

if TYPE_CHECKING:
    from .dispatch import Dispatcher

TICK_S = 0.1  # freshness and load change without an event


class Held:
    """Everything that waits."""

    def __init__(self, core: "Dispatcher") -> None:
        self._core = core
        self._texts: dict[asyncio.Future[None], Request] = {}
        self._choices: dict[Choice, None] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._soon = False

    def __len__(self) -> int:
        return len(self._texts) + len({choice.answer for choice in self._choices})

    def tokens(self) -> int:
        known = sum(choice.prompt_len for choice in self._choices)
        return known + sum(_estimate(request) for request in self._texts.values())

    async def until_change(self, request: Request, hold_until: float, deadline: float | None) -> None:
        """Raises Shed, Expired or Unavailable."""
        core = self._core
        if len(self) >= core.config.limits.max_held_requests:
            raise Shed("too many requests wait for a worker", 1.0)
        loop = asyncio.get_running_loop()
        changed = loop.create_future()
        self._texts[changed] = request
        until = hold_until if deadline is None else min(hold_until, deadline)
        timer = loop.call_later(max(0.0, until - core.now()), _resolve, changed)
        try:
            await changed
        finally:
            timer.cancel()
            self._texts.pop(changed, None)
        now = core.now()
        if core.draining:
            raise Unavailable("the router is shutting down")
        if deadline is not None and now >= deadline:
            raise Expired
        if now >= hold_until:
            raise Unavailable("no worker has joined", 1.0)

    def hold(self, choice: Choice) -> bool:
        """False: it may not wait any longer."""
        core = self._core
        # A router that goes takes nothing new; what the client has a part of may wait as long as the grace lasts.
        if core.now() >= choice.held_until or (core.draining and not choice.chain.emitted):
            return False
        if choice not in self._choices and len(self) >= core.config.limits.max_held_requests:
            return False
        self._choices[choice] = None
        self._arm()
        return True

    def drop(self, choice: Choice) -> None:
        self._choices.pop(choice, None)

    def fleet_changed(self) -> None:
        """Comes from inside changes of the fleet: those that wait look at it when the change is complete."""
        if not self._soon and (self._texts or self._choices):
            self._soon = True
            asyncio.get_running_loop().call_soon(self._look)

    def _arm(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._retry = None
        self._look()

    def _look(self) -> None:
        self._soon = False
        for changed in self._texts:
            _resolve(changed)
        choices, self._choices = list(self._choices), {}
        for choice in choices:
            if choice.chain.phase == "placing" and not choice.answer.over:
                self._core.place(choice)
        if self._choices:
            self._arm()


def _resolve(changed: "asyncio.Future[None]") -> None:
    if not changed.done():
        changed.set_result(None)


def _estimate(request: Request) -> int:
    if request.token_ids is not None:
        return len(request.token_ids)
    if request.prompt is not None:
        return len(request.prompt) // 4
    return sum(len(m["content"]) for m in request.messages or ()) // 4
