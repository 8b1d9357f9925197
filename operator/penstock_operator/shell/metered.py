"""The processor time of one coroutine among many.

Promise: counts the coroutine's own steps, and not what other tasks do while it waits.
"""

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Metered(Generic[T]):
    def __init__(self, coroutine: Coroutine[Any, Any, T], clock: Callable[[], float]) -> None:
        self._coroutine, self._clock = coroutine, clock
        self.seconds = 0.0

    def __await__(self) -> Generator[Any, Any, T]:
        step: Callable[[Any], Any] = self._coroutine.send
        given: Any = None
        while True:
            begun = self._clock()
            try:
                waits_for = step(given)
            except StopIteration as done:
                result: T = done.value
                return result
            finally:
                self.seconds += self._clock() - begun
            try:
                given, step = (yield waits_for), self._coroutine.send
            except BaseException as error:  # noqa: BLE001  what is thrown in is the coroutine's: a cancellation, for one
                given, step = error, self._coroutine.throw
