"""A worker or a router of the chaos fleet: the product's own main, with strings on it.

Commands are JSON lines on standard input, and its end ends the process: none outlives the runner. Strings are pulled
at the fake engine's edge and at `time.time`; product code is untouched.

The clock: `time.time` of this process jumps by an offset, as a step by an administrator or NTP would make it; the monotonic
clock does not, as it does not under a real step.
"""

import asyncio
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock_workers.config import WorkerConfig
    from penstock_workers.engine.fake import FakeEngine

_real_time = time.time
_offset_s = 0.0


def _time() -> float:
    return _real_time() + _offset_s


def step_clock(by_s: float) -> None:
    global _offset_s  # one clock per process
    _offset_s = by_s


Command = Callable[[dict[str, Any]], None]


def listen(commands: dict[str, Command]) -> None:
    """Reads commands until the runner is gone."""

    def read() -> None:
        for line in sys.stdin:
            command = json.loads(line)
            commands[command["do"]](command)
        os._exit(3)

    threading.Thread(target=read, daemon=True, name="chaos").start()


class Strings:
    """What can be pulled on a fake engine."""

    def __init__(self, engine: "FakeEngine") -> None:
        from penstock_workers.engine.fake_transfer import Holder

        self.engine = engine
        self.settings = engine.settings
        self.lease_s = float("inf")
        self.refuses = False
        hold, pull = Holder.hold, Holder.pull
        # The lease that is promised stays: KV is gone before the router thinks it could be.
        Holder.hold = lambda own, request, blocks, data, lease_s: hold(  # type: ignore[method-assign,assignment]
            own, request, blocks, data, min(lease_s, self.lease_s)
        )
        Holder.pull = lambda own, request, tokens: (  # type: ignore[method-assign,assignment]
            "refused by chaos" if self.refuses else pull(own, request, tokens)
        )

    def commands(self) -> dict[str, Command]:
        return {
            "hang": lambda c: self.engine.inject_hang(),
            "resume": lambda c: self.engine.resume(),
            "die": lambda c: self.engine.inject_death("killed by chaos"),
            "slow": lambda c: self._set(time_scale=self.settings.time_scale * c["by"]),
            "slow_pulls": lambda c: self._set(transfer_base_s=c["s"]),
            "lease": self._lease,
            "refuse": self._refuse,
        }

    def _set(self, **values: float) -> None:
        self.engine.settings = self.engine.settings.model_copy(update=values)

    def _lease(self, command: dict[str, Any]) -> None:
        self.lease_s = float("inf") if command["s"] is None else command["s"]

    def _refuse(self, command: dict[str, Any]) -> None:
        self.refuses = command["on"]


def run_worker(arguments: list[str]) -> int:
    from penstock_workers import main
    from penstock_workers.engine.fake import FakeEngine
    from penstock_workers.pool.engines import make_engine

    async def with_strings(config: "WorkerConfig") -> "FakeEngine":
        engine = await make_engine(config)
        assert isinstance(engine, FakeEngine)
        loop = asyncio.get_running_loop()
        strings = Strings(engine).commands()

        def on_loop(command: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(strings[command["do"]], command)

        listen({name: on_loop for name in strings} | {"clock": lambda c: step_clock(c["by_s"])})
        return engine

    main.make_engine = with_strings  # type: ignore[attr-defined]
    return main.main(arguments)


def run_router(arguments: list[str]) -> int:
    from penstock_router import main

    listen({"clock": lambda c: step_clock(c["by_s"])})
    return main.main(arguments)


def run(kind: str, arguments: list[str]) -> int:
    return run_worker(arguments) if kind == "worker" else run_router(arguments)


def prepare() -> None:
    """Takes the clock over, and imports what workers and routers need, before anything is forked."""
    time.time = _time
    for module in ("router.main", "router.text.model", "workers.main", "workers.engine.fake"):
        importlib.import_module(f"penstock_{module}")
