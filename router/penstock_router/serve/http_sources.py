"""What the HTTP front asks of the router's core, and its own settings."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from penstock_proto.v1.inference_pb2 import ModelCard

from ..request import Limits, Request


class Answer(Protocol):
    """One answer being made. `next` gives everything available, [] at the end, or raises a Fault."""

    @property
    def model(self) -> str: ...
    @property
    def created(self) -> float: ...
    async def next(self) -> Sequence[Any]: ...


class Dispatcher(Protocol):
    """Leaving the context of `answer` cancels whatever still runs of it."""

    def answer(self, request: Request, deadline: float | None) -> AbstractAsyncContextManager[Answer]: ...
    def models(self) -> Iterable[ModelCard]: ...
    def ready(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The HTTP front's settings."""

    limits: Limits
    max_body_bytes: int = 16 * 1024 * 1024
