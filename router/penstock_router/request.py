"""One client request, checked.

Promise: what `parse` returns is well formed, and what `check_against_model` returns can run on a worker of
that model; everything else is a CallerFault (or UnknownModel) that names the field and what would be
accepted. Both fronts build a GenerateRequest and pass here, so nothing is checked twice. No I/O, no clock.
"""

import os
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from penstock_proto.v1.common_pb2 import Sampling
from penstock_proto.v1.inference_pb2 import Chat, GenerateRequest, Program

from .config import RouterConfig
from .faults import CallerFault, UnknownModel
from .preflight import MAX_ENTRIES, crowded
from .structured import check_large_schema, check_structured

ROLES: Final = ("system", "user", "assistant", "tool")
MAX_N: Final = 8
MAX_LOGPROBS: Final = 20
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 1_024
MAX_STOP_TOKENS: Final = 128
MAX_MESSAGES: Final = 4_096
MAX_NAME_CHARS: Final = 128
UNSEEDED: Final = -1  # as vLLM has it
MAX_SEED: Final = 2**63 - 1
VISIBLE = re.compile(r"[\x21-\x7e]{1,128}")  # fits a header and a log line as it stands


@dataclass(frozen=True, slots=True)
class Limits:
    """What this router accepts, from its configuration."""

    models: frozenset[str]  # served names; empty: not known yet, whoever places the request refuses
    service_classes: frozenset[str] = frozenset({"default"})
    default_service_class: str = "default"
    max_prompt_chars: int = 16 * 1024 * 1024


def limits_of(config: RouterConfig) -> Limits:
    return Limits(
        models=frozenset({config.model} if config.model else ()),
        service_classes=frozenset(each.name for each in config.classes),
        default_service_class=config.default_service_class,
        max_prompt_chars=config.limits.max_prompt_chars,
    )


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request: exactly one of prompt, messages and token_ids is set."""

    request_id: str
    model: str  # empty: the only one
    prompt: str | None
    messages: tuple[Mapping[str, str], ...] | None  # role and content
    token_ids: Sequence[int] | None
    sampling: Sampling  # the client's; unset fields are unset
    n: int
    service_class: str
    explain: bool
    program: Program | None
    default_max_tokens: int | None  # where the client names none; clipped to the context
    identity: str = ""  # the client's name for this request, answered once; empty: it gave none
    identity_field: str = "request_id"  # where it gave it
    retry: bool = False  # the client says that it got nothing of its attempts before

    @property
    def add_special_tokens(self) -> bool:
        """A completion's text gets the model's special tokens; a chat template writes its own."""
        return self.messages is None

    @property
    def input_field(self) -> str:
        return "prompt" if self.prompt is not None else "messages" if self.messages is not None else "token_ids"


@dataclass(frozen=True, slots=True)
class Malformed:
    """Bytes that are no GenerateRequest, or none that is worth parsing."""

    field: str = "request"
    why: str = "not a GenerateRequest message"


class ModelFacts(Protocol):
    """What checks need to know of a model; `TextModel` has it."""

    @property
    def max_model_len(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def generation_defaults(self) -> Mapping[str, Any]: ...


def deserialize(data: bytes) -> GenerateRequest | Malformed:
    """For the gRPC server: grpc answers INTERNAL where a deserializer raises, so this one never does."""
    if field := crowded(data):
        return Malformed(field, f"has more than {MAX_ENTRIES} entries")
    try:
        return GenerateRequest.FromString(data)
    except DecodeError:
        return Malformed()


def new_request_id() -> str:
    return os.urandom(16).hex()


def check_request_id(field: str, value: str) -> None:
    if not VISIBLE.fullmatch(value):
        raise CallerFault(field, "must be 1 to 128 visible ASCII characters")


async def accept(
    message: GenerateRequest | Malformed, limits: Limits, default_max_tokens: int | None = None, left_s: float | None = None
) -> Request:
    """As `parse`; what takes long runs off the event loop, for `left_s` at most. What the fronts call."""
    if isinstance(message, GenerateRequest):
        await check_large_schema(message.sampling.json_schema, left_s)
    return parse(message, limits, default_max_tokens)


def parse(message: GenerateRequest | Malformed, limits: Limits, default_max_tokens: int | None = None) -> Request:
    """Every check that needs no model."""
    if isinstance(message, Malformed):
        raise CallerFault(message.field, message.why)
    if message.request_id:
        check_request_id("request_id", message.request_id)
    model = check_model(message.model, limits)
    service_class = message.service_class or limits.default_service_class
    if service_class not in limits.service_classes:
        known = ", ".join(sorted(limits.service_classes))
        raise CallerFault("service_class", f"must be one of: {known}")
    prompt, messages, token_ids = check_input(message, limits)
    check_sampling(message.sampling)
    return Request(
        request_id=message.request_id or new_request_id(),
        identity=message.request_id,
        model=model,
        prompt=prompt,
        messages=messages,
        token_ids=token_ids,
        sampling=message.sampling,
        n=message.sampling.n or 1,
        service_class=service_class,
        explain=message.explain,
        program=check_program(message.program) if message.HasField("program") else None,
        default_max_tokens=default_max_tokens,
    )


def check_model(name: str, limits: Limits) -> str:
    if name and limits.models and name not in limits.models:
        raise UnknownModel(name[:MAX_NAME_CHARS])
    if name or not limits.models:
        return name
    if len(limits.models) > 1:
        raise CallerFault("model", f"must be one of: {', '.join(sorted(limits.models))}")
    return next(iter(limits.models))


def check_program(program: Program) -> Program:
    if not VISIBLE.fullmatch(program.id):
        raise CallerFault("program.id", "must be 1 to 128 visible ASCII characters")
    if len(program.tool) > MAX_NAME_CHARS:
        raise CallerFault("program.tool", f"must have at most {MAX_NAME_CHARS} characters")
    return program


Input = tuple[str | None, tuple[Mapping[str, str], ...] | None, Sequence[int] | None]


def check_input(message: GenerateRequest, limits: Limits) -> Input:
    match message.WhichOneof("input"):
        case "prompt":
            if not message.prompt:
                raise CallerFault("prompt", "must not be empty")
            check_chars("prompt", len(message.prompt), limits)
            return message.prompt, None, None
        case "chat":
            return None, check_chat(message.chat, limits), None
        case "token_ids":
            if not message.token_ids.ids:
                raise CallerFault("token_ids", "must not be empty")
            return None, None, array("I", message.token_ids.ids)
    raise CallerFault("prompt", "one of prompt, chat and token_ids is needed")


def check_chars(field: str, chars: int, limits: Limits) -> None:
    if chars > limits.max_prompt_chars:
        message = f"has {chars} characters; at most {limits.max_prompt_chars} are accepted"
        raise CallerFault(field, message, code="context_length_exceeded")


def check_chat(chat: Chat, limits: Limits) -> tuple[Mapping[str, str], ...]:
    for reserved in ("tools", "tool_choice"):
        if getattr(chat, reserved):
            raise CallerFault(reserved, "not supported yet", code="unsupported_parameter")
    if not chat.messages:
        raise CallerFault("messages", "must not be empty")
    if len(chat.messages) > MAX_MESSAGES:
        raise CallerFault("messages", f"has {len(chat.messages)} messages; at most {MAX_MESSAGES} are accepted")
    checked = []
    for index, entry in enumerate(chat.messages):
        if entry.role not in ROLES:
            raise CallerFault(f"messages[{index}].role", f"must be one of: {', '.join(ROLES)}")
        checked.append({"role": entry.role, "content": entry.content})
    check_chars("messages", sum(len(entry["content"]) for entry in checked), limits)
    return tuple(checked)


RANGES: Final = (
    # A number outside the range, NaN included, is refused. The last one's bounds keep logits finite in float32.
    ("temperature", 0.0, 2.0, "between 0 and 2"),
    ("min_p", 0.0, 1.0, "between 0 and 1"),
    ("presence_penalty", -2.0, 2.0, "between -2 and 2"),
    ("frequency_penalty", -2.0, 2.0, "between -2 and 2"),
    ("repetition_penalty", 0.01, 100.0, "between 0.01 and 100"),
)


def check_sampling(sampling: Sampling) -> None:
    for name, low, high, words in RANGES:
        if sampling.HasField(name) and not low <= getattr(sampling, name) <= high:
            raise CallerFault(name, f"must be {words}, not {getattr(sampling, name):g}")
    if sampling.HasField("top_p") and not 0.0 < sampling.top_p <= 1.0:
        raise CallerFault("top_p", f"must be above 0 and at most 1, not {sampling.top_p:g}")
    if sampling.n > MAX_N:
        raise CallerFault("n", f"must be 1 to {MAX_N}, not {sampling.n}")
    if sampling.HasField("logprobs") and sampling.logprobs > MAX_LOGPROBS:
        raise CallerFault("logprobs", f"must be 0 to {MAX_LOGPROBS}, not {sampling.logprobs}")
    if sampling.HasField("max_tokens"):
        if sampling.max_tokens == 0:
            raise CallerFault("max_tokens", "must be at least 1, not 0")
        check_min_tokens(sampling.min_tokens, sampling.max_tokens)
    check_stops(sampling)
    check_structured(sampling)


def check_min_tokens(min_tokens: int, max_tokens: int) -> None:
    if min_tokens > max_tokens:
        raise CallerFault("min_tokens", f"must be at most max_tokens, {max_tokens}, not {min_tokens}")


def check_stops(sampling: Sampling) -> None:
    if len(sampling.stop) > MAX_STOPS:
        raise CallerFault("stop", f"has {len(sampling.stop)} strings; at most {MAX_STOPS} are accepted")
    for index, text in enumerate(sampling.stop):
        if not text:
            raise CallerFault(f"stop[{index}]", "must not be empty")
        if len(text) > MAX_STOP_CHARS:
            raise CallerFault(f"stop[{index}]", f"has {len(text)} characters; at most {MAX_STOP_CHARS} are accepted")
    if len(sampling.stop_token_ids) > MAX_STOP_TOKENS:
        message = f"has {len(sampling.stop_token_ids)} ids; at most {MAX_STOP_TOKENS} are accepted"
        raise CallerFault("stop_token_ids", message)


def check_against_model(request: Request, prompt_len: int, facts: ModelFacts) -> Sampling:
    """Every check that needs the model; returns what workers run: one choice, every default filled in."""
    check_ids("stop_token_ids", request.sampling.stop_token_ids, facts.vocab_size)
    if request.token_ids is not None:
        check_ids("token_ids", request.token_ids, facts.vocab_size)
    if prompt_len == 0:
        raise CallerFault(request.input_field, "must not be empty")
    left = facts.max_model_len - prompt_len
    if left < 1:
        message = f"has {prompt_len} tokens; the context of {facts.max_model_len} must hold them and an answer"
        raise CallerFault(request.input_field, message, code="context_length_exceeded")
    sampling = request.sampling
    if sampling.HasField("max_tokens"):
        max_tokens = sampling.max_tokens
        if max_tokens > left:
            message = (
                f"must be at most {left}, not {max_tokens}: the context has {facts.max_model_len} tokens "
                f"and the prompt takes {prompt_len}"
            )
            raise CallerFault("max_tokens", message, code="context_length_exceeded")
    else:
        max_tokens = min(left, default_max_tokens(request, facts.generation_defaults))
    check_min_tokens(sampling.min_tokens, max_tokens)
    return resolve(sampling, max_tokens, facts.generation_defaults)


def default_max_tokens(request: Request, defaults: Mapping[str, Any]) -> int:
    """The front's default wins over the model's, as in vLLM; without either the context is the bound."""
    if request.default_max_tokens is not None:
        return request.default_max_tokens
    for name in ("max_tokens", "max_new_tokens"):
        if defaults.get(name) is not None:
            return max(1, int(defaults[name]))
    return 2**32 - 1


def check_ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    if len(ids) and max(ids) >= vocab_size:
        index = next(i for i, token in enumerate(ids) if token >= vocab_size)
        raise CallerFault(f"{field}[{index}]", f"must be below the vocabulary's {vocab_size}, not {ids[index]}")


NEUTRAL: Final = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}


def resolve(sampling: Sampling, max_tokens: int, defaults: Mapping[str, Any]) -> Sampling:
    """What the client left unset comes from generation_config, else from vLLM's neutral values."""
    resolved = Sampling()
    resolved.CopyFrom(sampling)
    resolved.n = 1
    resolved.max_tokens = max_tokens
    if resolved.HasField("seed") and resolved.seed == UNSEEDED:
        resolved.ClearField("seed")
    if resolved.WhichOneof("structured") == "json_object" and not resolved.json_object:
        resolved.ClearField("json_object")
    for name, neutral in NEUTRAL.items():
        if resolved.HasField(name):
            continue
        default = defaults.get(name)
        setattr(resolved, name, neutral if default is None else default)
    return resolved


def sampling_of_choice(sampling: Sampling, index: int) -> Sampling:
    """The sampling of one of n choices: seeded choices differ by their seed, exactly as in vLLM."""
    if index == 0 or not sampling.HasField("seed"):
        return sampling
    own = Sampling()
    own.CopyFrom(sampling)
    seed = (sampling.seed + index + 2**63) % 2**64 - 2**63
    own.seed = MAX_SEED if seed == UNSEEDED else seed  # an engine would read -1 as no seed
    return own
