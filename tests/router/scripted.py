"""A dispatcher that answers from a script: the HTTP front's tests need no worker.

Tokens are characters. The checks against the model are the router's own.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from penstock_proto.v1.common_pb2 import FinishReason, TokenLogprob
from penstock_proto.v1.inference_pb2 import LegPlacement, ModelCard, Placement, Usage
from penstock_router.faults import Fault, UnknownModel
from penstock_router.request import Request, check_against_model


@dataclass(frozen=True, slots=True)
class Facts:
    max_model_len: int = 256
    vocab_size: int = 1000
    generation_defaults: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delta:
    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: int = 0
    stop_reason: str = ""
    usage: Usage | None = None
    placement: Placement | None = None


Step = list[Delta] | Exception | asyncio.Event
Script = Callable[[Request], Sequence[Step]]


class ScriptedAnswer:
    def __init__(self, request: Request, steps: Sequence[Step]) -> None:
        self.request_id = request.request_id
        self.model = request.model or "tiny"
        self.created = 1_700_000_000.5
        self.steps = deque(steps)

    async def next(self) -> list[Delta]:
        while self.steps:
            step = self.steps.popleft()
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                return step
        return []


class ScriptedDispatcher:
    """Counts what it was asked and how each answer was left."""

    def __init__(self, script: Script, facts: Facts | None = None) -> None:
        self.script = script
        self.facts = facts or Facts()
        self.requests: list[Request] = []
        self.answers: list[ScriptedAnswer] = []
        self.cancelled: list[str] = []
        self.refusals: list[str] = []
        self.left = asyncio.Event()
        self.is_ready = True

    @asynccontextmanager
    async def answer(self, request: Request, deadline: float | None) -> AsyncIterator[ScriptedAnswer]:
        self.requests.append(request)
        if request.model not in ("", "tiny"):
            raise UnknownModel(request.model)
        check_against_model(request, prompt_len(request), self.facts)
        answer = ScriptedAnswer(request, self.script(request))
        self.answers.append(answer)
        try:
            yield answer
        finally:
            if answer.steps:
                self.cancelled.append(answer.request_id)
            self.left.set()

    def refused(self, fault: Fault) -> None:
        self.refusals.append(fault.code)

    def models(self) -> list[ModelCard]:
        return [ModelCard(name="tiny", max_model_len=self.facts.max_model_len, created_s=1_700_000_000)]

    def ready(self) -> bool:
        return self.is_ready


def prompt_len(request: Request) -> int:
    if request.messages is not None:
        return sum(len(message["content"]) for message in request.messages) + 1
    return len(request.prompt if request.prompt is not None else request.token_ids or ())


def logprob_of(piece: str) -> TokenLogprob:
    data = piece.encode()
    other = TokenLogprob(token_id=2, token=b"\xff", logprob=float("-inf"))
    own = TokenLogprob(token_id=1, token=data, logprob=-0.25)
    return TokenLogprob(token_id=1, token=data, logprob=-0.25, top=[own, other])


def answering(text: str, finish: int = FinishReason.STOP) -> Script:
    """Every choice says `text` word by word, cut at a stop string or after max_tokens words."""

    def script(request: Request) -> list[Step]:
        said, reason, stop_reason = text, finish, ""
        for stop in request.sampling.stop:
            if stop in said:
                said, reason, stop_reason = said[: said.index(stop)], FinishReason.STOP, stop
        words = said.split(" ")
        pieces = [word if i == 0 else f" {word}" for i, word in enumerate(words)]
        if request.sampling.HasField("max_tokens") and len(pieces) > request.sampling.max_tokens:
            pieces, reason = pieces[: request.sampling.max_tokens], FinishReason.LENGTH
        told = [logprob_of(piece) for piece in pieces] if request.sampling.HasField("logprobs") else []
        steps: list[Step] = []
        for i, piece in enumerate(pieces):
            steps.append([Delta(index=c, text=piece, token_ids=[i], logprobs=told[i : i + 1]) for c in range(request.n)])
        prompt = prompt_len(request)
        usage = Usage(
            prompt_tokens=prompt, cached_tokens=prompt // 2, computed_tokens=prompt - prompt // 2,
            completion_tokens=len(pieces),
        )  # fmt: skip
        placement = Placement(kind="colocated", reason="alone", legs=[LegPlacement(kind="whole", worker="w0")])
        last = Delta(finish_reason=reason, stop_reason=stop_reason, usage=usage, placement=placement if request.explain else None)
        steps.append([Delta(c, *[getattr(last, name) for name in Delta.__slots__[1:]]) for c in range(request.n)])
        return steps

    return script
