"""Looks at the engine for `hang`, and asks it for a sign of life.

Promise: one task, at most one question at a time; an engine that does not answer is told of by `on_dead`, never after `stop`.
"""

import asyncio
from collections.abc import Callable

from penstock_workers.engine.protocol import Engine
from penstock_workers.pool import hang

_LOOKS_PER_FLOOR = 20
_EVERY_S = 0.25


class EngineWatch:
    def __init__(
        self,
        engine: Engine,
        limits: hang.Limits,
        *,
        work: Callable[[], hang.InFlight],
        known: Callable[[], hang.Measured],
        on_dead: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._work, self._known, self._on_dead = work, known, on_dead
        self._state = hang.Watch()
        self._every_s = min(_EVERY_S, limits.floor_s / _LOOKS_PER_FLOOR)
        self._task: asyncio.Task[None] | None = None
        self._question: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._look(), name="engine watch")

    async def stop(self) -> None:
        tasks = [t for t in (self._task, self._question) if t is not None]
        self._task = self._question = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def arrived(self, tokens: int) -> None:
        self._state = hang.arrived(self._state, tokens)

    def spoke(self) -> None:
        self._state = hang.stepped(self._state)

    def stepped(self, prefill_tokens: int) -> None:
        self._state = hang.counted(hang.stepped(self._state, prefill_tokens))

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            work, known = self._work(), self._known()
            self._state, decision = hang.look(self._state, loop.time(), self._every_s, work, known, self._limits)
            if decision == "ask":
                self._question = asyncio.create_task(self._ask(), name="engine question")
            elif decision == "hung":
                limit = hang.limit_s(self._state, work, known, self._limits)
                self._on_dead(f"it hangs: no step and no answer for {self._state.silent_s:.1f} s, {limit:.1f} s are allowed")
                return
            await asyncio.sleep(self._every_s)

    async def _ask(self) -> None:
        try:
            await self._engine.check()
        except Exception as error:  # noqa: BLE001 - an engine may fail its check in any way, and is dead in each
            self._on_dead(str(error))
            return
        self._state = hang.answered(self._state)
