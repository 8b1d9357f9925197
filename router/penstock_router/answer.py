"""An answer being made: what its choices have produced and the client has not got yet.

Promise: everything produced is handed out once, in order; nothing available is ever held back; a choice's last delta
carries its finish reason, and a fault comes after all that was produced before it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock_proto.v1.common_pb2 import TokenLogprob
from penstock_proto.v1.inference_pb2 import GenerateResponse, Placement, Usage

from .faults import Fault
from .request import Request

if TYPE_CHECKING:
    from .choice import Choice
    from .dispatch import Dispatcher


@dataclass(slots=True, eq=False)
class Delta:
    """What is new of one choice."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: int = 0  # a FinishReason on the choice's last delta
    stop_reason: str = ""
    usage: Usage | None = None
    placement: Placement | None = None

    def message(self) -> GenerateResponse:
        """As gRPC has it, all but the request's id."""
        out = GenerateResponse(index=self.index, text=self.text, token_ids=self.token_ids)
        if self.logprobs:
            out.logprobs.extend(self.logprobs)
        if self.finish_reason:
            out.finish_reason = self.finish_reason  # type: ignore[assignment]
            out.stop_reason = self.stop_reason
            if self.usage is not None:
                out.usage.CopyFrom(self.usage)
            if self.placement is not None:
                out.placement.CopyFrom(self.placement)
        return out


class Answer:
    """Handed to a front. Either `next` is awaited, or `listen` has a function called whenever there is something."""

    __slots__ = (
        "__weakref__", "_awake", "_listener", "_schedule", "_waiter", "choices", "created", "deadline_timer", "fault", "model",
        "open_choices", "outcome", "prompt_tokens", "received_at", "request", "request_id", "service_class", "settle",
    )  # fmt: skip

    def __init__(
        self, request: Request, model: str, created: float, received_at: float, schedule: Callable[["Answer"], None]
    ) -> None:
        self.request = request
        self.request_id = request.request_id
        self.service_class = request.service_class
        self.model = model
        self.created = created
        self.received_at = received_at
        self.prompt_tokens = 0
        self.choices: list[Choice] = []
        self.open_choices = 0
        self.fault: Fault | None = None
        self.outcome = ""  # how it ended, for metrics; empty: it has not
        self.settle: Callable[[Answer, str], None] = lambda answer, outcome: None
        self.deadline_timer: asyncio.TimerHandle | None = None
        self._schedule = schedule
        self._awake = False
        self._waiter: asyncio.Future[None] | None = None
        self._listener: Callable[[], None] | None = None

    # What makes it.

    def wake(self) -> None:
        """Something is there. Deliveries are made once per turn of the loop, so a backlog leaves as one message."""
        if not self._awake:
            self._awake = True
            self._schedule(self)

    def deliver(self) -> None:
        self._awake = False
        if self._listener is not None:
            self._listener()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, fault: Fault) -> None:
        """Ends the whole answer; choices that still run are cancelled."""
        if self.fault is not None or self.over:
            return
        self.fault = fault
        for choice in self.choices:
            choice.cancel()
        self.end(fault.code)
        self.wake()

    def end(self, outcome: str) -> None:
        """Settles once, however it ended."""
        if self.outcome:
            return
        self.outcome = outcome
        if self.deadline_timer is not None:
            self.deadline_timer.cancel()
        self.settle(self, outcome)

    # What takes it.

    @property
    def over(self) -> bool:
        """Nothing more will be produced."""
        return bool(self.outcome)

    def listen(self, listener: Callable[[], None]) -> None:
        """From now on `listener` is called instead of waking `next`; at once if something is there."""
        self._listener = listener
        if self.over or any(choice.dirty for choice in self.choices):
            self.wake()

    def take(self) -> list[Delta]:
        """Everything available now; no waiting."""
        return [choice.take() for choice in self.choices if choice.dirty]

    async def next(self) -> list[Delta]:
        """Everything available, at least one delta; [] at the end. Raises the fault that ended it."""
        while True:
            deltas = self.take()
            if deltas:
                return deltas
            if self.fault is not None:
                raise self.fault
            if self.over:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def release(self) -> None:
        """Its front is done with it. Without cycles it is freed now and leaves nothing for the collector."""
        self._listener = None
        self.fault = None
        self.choices = []

    def cancel(self, reason: str = "cancelled") -> None:
        """Synchronous and idempotent: what still runs is aborted, held KV is given back."""
        if self.over:
            return
        for choice in self.choices:
            choice.cancel()
        self.end(reason)
        self.wake()


class Opened:
    """The context of one answer: whatever way it is left, what still runs is cancelled."""

    __slots__ = ("_answer", "_deadline", "_dispatcher", "_request")

    def __init__(self, dispatcher: "Dispatcher", request: Request, deadline: float | None) -> None:
        self._dispatcher, self._request, self._deadline = dispatcher, request, deadline
        self._answer: Answer | None = None

    async def __aenter__(self) -> Answer:
        self._answer = await self._dispatcher.open(self._request, self._deadline)
        return self._answer

    async def __aexit__(self, *exc: object) -> None:
        if self._answer is not None:
            self._answer.cancel()
            self._answer.release()
