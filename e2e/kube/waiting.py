"""Waiting for what a cluster comes to by itself."""

import inspect
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(what: Callable[[], T], seconds: float = 240.0, told: Callable[[], str] | None = None, every: float = 0.1) -> T:
    """Polls. The bound is for a machine that hangs, not for a slow one; `told` is asked where it never came."""
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            raise AssertionError(f"never, in {seconds:.0f} s: {inspect.getsource(what).strip()}\n{told() if told else ''}")
        time.sleep(every)
    return found
