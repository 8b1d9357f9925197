"""One answer in OpenAI's words: a body at its end, or chunks as it comes.

Promise: a chunk costs one serialised string and some concatenation. Every byte of model output passes
through the JSON encoder in ASCII, so no text can end a server-sent event or begin another.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Final, Protocol

from google.protobuf.json_format import MessageToDict

from penstock_proto.v1.common_pb2 import FinishReason, TokenLogprob
from penstock_proto.v1.inference_pb2 import Placement, Usage

FINISH: Final[Mapping[int, str]] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "abort",
    FinishReason.ERROR: "error",
}
LEAST_LOGPROB: Final = -9999.0  # JSON has no infinity; vLLM's stand-in
DONE: Final = "data: [DONE]\n\n"


class Delta(Protocol):
    """What one choice gained; see `penstock_router.answer`."""

    @property
    def index(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def logprobs(self) -> Sequence[TokenLogprob]: ...
    @property
    def finish_reason(self) -> int: ...
    @property
    def stop_reason(self) -> str: ...
    @property
    def usage(self) -> Usage | None: ...
    @property
    def placement(self) -> Placement | None: ...


@dataclass(frozen=True, slots=True)
class Style:
    """How chat and completions differ on the wire."""

    answer_object: str
    chunk_object: str
    id_prefix: str
    text_open: str
    text_close: str
    opening: str  # a choice's first chunk; empty: none
    choice: Callable[[str], dict[str, Any]]
    logprobs: Callable[[Sequence[TokenLogprob], int], dict[str, Any]]  # of tokens that begin at a character


@dataclass(slots=True)
class Choice:
    """What is known of one choice so far."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offset: int = 0  # characters of the tokens whose log probabilities were told
    finish_reason: str | None = None
    stop_reason: str | None = None
    usage: Usage | None = None
    placement: Placement | None = None


def token_text(token: TokenLogprob) -> str:
    return token.token.decode("utf-8", "replace")


def told(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB) if logprob == logprob else LEAST_LOGPROB


class Wire:
    """Turns the deltas of `prompts` x `n` choices into what the client reads. Single owner, no I/O."""

    def __init__(
        self,
        style: Style,
        *,
        request_id: str,
        model: str,
        created: int,
        n: int,
        prompts: int = 1,
        include_usage: bool = False,
        explain: bool = False,
        logprobs: bool = False,
    ) -> None:
        self.style = style
        self.head: dict[str, Any] = {
            "id": style.id_prefix + request_id,
            "object": style.answer_object,
            "created": created,
            "model": model,
        }
        self.n = n
        self.choices = [Choice() for _ in range(n * prompts)]
        self.include_usage = include_usage
        self.explain = explain
        self.logprobs = logprobs
        chunk_head = json.dumps({**self.head, "object": style.chunk_object}, separators=(",", ":"))[:-1]
        opens = [f'data: {chunk_head},"choices":[{{"index":{i},' for i in range(n * prompts)]
        end = ',"usage":null}\n\n' if include_usage else "}\n\n"
        self.chunk_end = end
        self.plain_head = [start + style.text_open for start in opens]
        self.plain_tail = f'{style.text_close},"logprobs":null,"finish_reason":null}}]{end}'
        self.unopened = set(range(n * prompts)) if style.opening else set()
        self.openings = [f'{start}{style.opening},"logprobs":null,"finish_reason":null}}]{end}' for start in opens]

    def chunks(self, deltas: Sequence[Delta]) -> bytes:
        """Server-sent events for everything in `deltas`; may be empty while text is held back."""
        parts: list[str] = []
        for delta in deltas:
            index = delta.index
            if index in self.unopened:
                self.unopened.discard(index)
                parts.append(self.openings[index])
            if delta.finish_reason or (self.logprobs and delta.logprobs):
                parts.append(self.full_chunk(delta))
            elif delta.text:
                parts += (self.plain_head[index], quote(delta.text), self.plain_tail)
        return "".join(parts).encode("ascii")

    def full_chunk(self, delta: Delta) -> str:
        choice = self.choices[delta.index]
        self.settle(choice, delta)
        logprobs = None
        if self.logprobs and delta.logprobs:
            logprobs = self.style.logprobs(delta.logprobs, choice.offset)
            choice.offset += sum(len(token_text(token)) for token in delta.logprobs)
        rest = {"logprobs": logprobs, "finish_reason": choice.finish_reason}
        if choice.finish_reason:
            rest["stop_reason"] = choice.stop_reason
        explained = ""
        if self.explain and choice.placement is not None:
            explained = f',"penstock":{json.dumps({"placements": [self.placement(delta.index)]})}'
        middle = f"{quote(delta.text)}{self.style.text_close},{json.dumps(rest, separators=(',', ':'))[1:]}]"
        return self.plain_head[delta.index] + middle + explained + self.chunk_end

    def closing(self) -> bytes:
        """The last events of a whole answer."""
        if not self.include_usage:
            return DONE.encode()
        last = {**self.head, "object": self.style.chunk_object, "choices": [], "usage": self.usage()}
        return f"data: {json.dumps(last, separators=(',', ':'))}\n\n{DONE}".encode("ascii")

    def absorb(self, deltas: Sequence[Delta]) -> None:
        """Keeps `deltas` for `body`."""
        for delta in deltas:
            choice = self.choices[delta.index]
            choice.text.append(delta.text)
            if self.logprobs:
                choice.logprobs.extend(delta.logprobs)
            if delta.finish_reason:
                self.settle(choice, delta)

    def settle(self, choice: Choice, delta: Delta) -> None:
        if delta.finish_reason:
            choice.finish_reason = FINISH.get(delta.finish_reason, "error")
            choice.stop_reason = delta.stop_reason or None
            choice.usage = delta.usage
            choice.placement = delta.placement

    def body(self) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for index, choice in enumerate(self.choices):
            choices.append(
                {
                    "index": index,
                    **self.style.choice("".join(choice.text)),
                    "logprobs": self.style.logprobs(choice.logprobs, 0) if self.logprobs else None,
                    "finish_reason": choice.finish_reason,
                    "stop_reason": choice.stop_reason,
                }
            )
        answer = {**self.head, "choices": choices, "usage": self.usage()}
        if self.explain:
            answer["penstock"] = {"placements": [self.placement(index) for index in range(len(choices))]}
        return answer

    def placement(self, index: int) -> dict[str, Any]:
        placement = self.choices[index].placement or Placement()
        told_fields = MessageToDict(placement, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        return {"index": index, **told_fields}

    def usage(self) -> dict[str, Any]:
        """A prompt counts once however many choices it has: the figures are those of its first choice."""
        usages = [choice.usage or Usage() for choice in self.choices]
        firsts = usages[:: self.n]
        prompt = sum(usage.prompt_tokens for usage in firsts)
        completion = sum(usage.completion_tokens for usage in usages)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": sum(usage.cached_tokens for usage in firsts),
                "transferred_tokens": sum(usage.transferred_tokens for usage in firsts),
                "computed_tokens": sum(usage.computed_tokens for usage in firsts),
            },
        }
