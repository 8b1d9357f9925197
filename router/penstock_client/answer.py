"""What an answer is made of: deltas as they stream, and the whole of it.

Promise: these are plain immutable values; folding every delta of a stream gives exactly the answer
that `generate` returns.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from penstock_proto.v1 import common_pb2, inference_pb2

_FINISH = {
    common_pb2.STOP: "stop",
    common_pb2.LENGTH: "length",
    common_pb2.ABORT: "abort",
    common_pb2.ERROR: "error",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """prompt_tokens = cached_tokens + transferred_tokens + computed_tokens."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    transferred_tokens: int = 0
    computed_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class LegPlacement:
    """One leg of a choice: which worker ran it and what it did."""

    kind: str  # whole, prefill, decode, resume or handoff
    worker: str
    pool: str
    cached_tokens: int
    transferred_tokens: int
    computed_tokens: int
    generated_tokens: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a choice ran, what was predicted and what came of it."""

    kind: str  # colocated or disaggregated
    reason: str
    predicted_ttft_s: float
    predicted_tpot_s: float
    ttft_s: float
    tpot_s: float
    legs: tuple[LegPlacement, ...]
    candidates: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural log probability; `top` are the most likely alternatives, best first."""

    token_id: int
    token: bytes
    logprob: float
    top: "tuple[TokenLogprob, ...]" = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """News of one choice. `finish_reason` is set on its last delta and only there, with `usage`."""

    text: str
    token_ids: tuple[int, ...]
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None  # stop, length, abort or error
    stop_reason: str = ""
    usage: Usage | None = None
    placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the n choices, whole."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    stop_reason: str
    usage: Usage
    placement: Placement | None
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; the short names are those of its first choice."""

    request_id: str
    choices: tuple[Choice, ...]

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def stop_reason(self) -> str:
        return self.choices[0].stop_reason

    @property
    def usage(self) -> Usage:
        return self.choices[0].usage

    @property
    def placement(self) -> Placement | None:
        return self.choices[0].placement

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return self.choices[0].logprobs


@dataclass(slots=True)
class _Partial:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: Delta | None = None


def fold(deltas: Iterable[Delta], request_id: str) -> Answer:
    """The answer that these deltas make up."""
    partials: dict[int, _Partial] = {}
    for delta in deltas:
        partial = partials.setdefault(delta.index, _Partial())
        partial.texts.append(delta.text)
        partial.token_ids.extend(delta.token_ids)
        partial.logprobs.extend(delta.logprobs)
        if delta.finish_reason is not None:
            partial.last = delta
    return Answer(request_id, tuple(_choice(index, partials[index]) for index in sorted(partials)) or (_EMPTY,))


def _choice(index: int, partial: _Partial) -> Choice:
    last = partial.last
    return Choice(
        index=index,
        text="".join(partial.texts),
        token_ids=tuple(partial.token_ids),
        finish_reason=last.finish_reason if last else None,
        stop_reason=last.stop_reason if last else "",
        usage=(last.usage if last else None) or Usage(),
        placement=last.placement if last else None,
        logprobs=tuple(partial.logprobs),
    )


_EMPTY = _choice(0, _Partial())


def begins(message: inference_pb2.GenerateResponse) -> bool:
    """The message carries a part of the answer: from here on the call is never sent again."""
    return bool(message.token_ids or message.text or message.finish_reason or message.usage.prompt_tokens)


def delta(message: inference_pb2.GenerateResponse) -> Delta:
    return Delta(
        text=message.text,
        token_ids=tuple(message.token_ids),
        index=message.index,
        logprobs=tuple(map(_logprob, message.logprobs)) if message.logprobs else (),
        finish_reason=_FINISH.get(message.finish_reason) if message.finish_reason else None,
        stop_reason=message.stop_reason,
        usage=_usage(message.usage) if message.HasField("usage") else None,
        placement=_placement(message.placement) if message.HasField("placement") else None,
    )


def _logprob(message: common_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.token_id, message.token, message.logprob, tuple(map(_logprob, message.top)))


def _usage(message: inference_pb2.Usage) -> Usage:
    return Usage(
        message.prompt_tokens,
        message.cached_tokens,
        message.transferred_tokens,
        message.computed_tokens,
        message.completion_tokens,
    )


def _placement(message: inference_pb2.Placement) -> Placement:
    legs = tuple(
        LegPlacement(
            leg.kind,
            leg.worker,
            leg.pool,
            leg.cached_tokens,
            leg.transferred_tokens,
            leg.computed_tokens,
            leg.generated_tokens,
            leg.outcome,
        )
        for leg in message.legs
    )
    return Placement(
        message.kind,
        message.reason,
        message.predicted_ttft_s,
        message.predicted_tpot_s,
        message.ttft_s,
        message.tpot_s,
        legs,
        message.candidates,
    )
