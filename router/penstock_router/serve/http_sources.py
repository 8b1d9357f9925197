"""What the HTTP front asks of the router's core."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from penstock_proto.v1.inference_pb2 import ModelCard

from ..faults import Fault
from ..request import Request


class Answer(Protocol):
    """One answer being made. `next` gives everything available, [] at the end, or raises a Fault."""

    @property
    def model(self) -> str: ...
    @property
    def created(self) -> float: ...
    async def next(self) -> Sequence[Any]: ...


class Dispatcher(Protocol):
    """Leaving the context of `answer` cancels whatever still runs of it; `refused` counts what never got there."""

    def answer(self, request: Request, deadline: float | None) -> AbstractAsyncContextManager[Answer]: ...
    def refused(self, fault: Fault) -> None: ...
    def models(self) -> Iterable[ModelCard]: ...
    def ready(self) -> bool: ...
