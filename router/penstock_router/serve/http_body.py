"""From an OpenAI-shaped body to the protocol's GenerateRequest.

Promise: whatever the bytes are, the result is an `Order` or a CallerFault that names the field or the
position; no other exception leaves this module. Ranges are checked once, by `penstock_router.request`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from penstock_proto.v1.common_pb2 import Message
from penstock_proto.v1.inference_pb2 import GenerateRequest

from ..faults import CallerFault
from .http_fields import (
    HARMLESS,
    NEUTRAL,
    SHARED,
    Body,
    check_keys,
    fill_sampling,
    flag,
    integer,
    items,
    mapping,
    refuse,
    text,
    token_ids,
)

COMPLETION_MAX_TOKENS: Final = 16  # OpenAI's default for completions
MAX_PROMPTS: Final = 32

CHAT_USED: Final = SHARED | HARMLESS | {"messages", "max_completion_tokens", "top_logprobs"}
CHAT_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    **NEUTRAL,
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "include_reasoning": (True,),
    "verbosity": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
}
COMPLETION_USED: Final = SHARED | HARMLESS | {"prompt"}
COMPLETION_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {**NEUTRAL, "add_special_tokens": (True,)}
MESSAGE_USED: Final = frozenset({"role", "content", "name", "tool_call_id"})
# What clients send back when they append our own answer to the conversation.
MESSAGE_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "refusal": ("",),
    "tool_calls": ([],),
    "function_call": (),
    "audio": (),
    "annotations": ([],),
    "reasoning": ("",),
    "reasoning_content": ("",),
}
HEADERS: Final = {"service_class": "x-penstock-service-class", "program.id": "x-penstock-program"}
OPENAI_ROLES: Final = {"developer": "system"}  # OpenAI's newer word for it


@dataclass(frozen=True, slots=True)
class Order:
    """What one HTTP request asks for."""

    messages: tuple[GenerateRequest, ...]  # one per prompt
    stream: bool
    include_usage: bool
    default_max_tokens: int | None
    names: Mapping[str, str] = field(default_factory=dict)  # the protocol's field -> the caller's

    def in_callers_words(self, fault: CallerFault, prompt: int) -> CallerFault:
        """The same fault under the field's name in this body."""
        if fault.field in self.names:
            return CallerFault(self.names[fault.field], fault.description, code=fault.code)
        base, bracket, rest = fault.field.partition("[")
        name = self.names.get(base, base)
        if base in ("prompt", "token_ids"):
            name = f"prompt[{prompt}]" if len(self.messages) > 1 else "prompt"
        return CallerFault(name + bracket + rest, fault.description, code=fault.code)


def decode(raw: bytes) -> Body:
    try:
        body = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise CallerFault("", f"the body is not UTF-8 at byte {error.start}", code="invalid_json") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise CallerFault("", f"the body is not valid JSON: {error.msg} at {place}", code="invalid_json") from None
    except RecursionError:
        raise CallerFault("", "the body is nested too deeply", code="invalid_json") from None
    except ValueError:  # Python reads no integer of thousands of digits
        raise CallerFault("", "the body holds a number that is too long", code="invalid_json") from None
    if not isinstance(body, dict):
        raise CallerFault("", "the body must be a JSON object", code="invalid_json")
    return body


def chat_order(body: Body) -> Order:
    check_keys(body, CHAT_USED, CHAT_NEUTRAL)
    message = GenerateRequest()
    message.chat.SetInParent()
    names = fill_common(body, message)
    for index, entry in enumerate(items("messages", body.get("messages", []))):
        message.chat.messages.append(chat_message(f"messages[{index}]", entry))
    given = [name for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    if len(given) == 2 and body["max_tokens"] != body["max_completion_tokens"]:
        raise CallerFault("max_tokens", "differs from max_completion_tokens; give one of them")
    if given:
        names["max_tokens"] = given[0]
        message.sampling.max_tokens = integer(given[0], body[given[0]], low=1)
    wanted = body.get("logprobs") is not None and flag("logprobs", body["logprobs"])
    alternatives = body.get("top_logprobs")
    if wanted:
        names["logprobs"] = "top_logprobs"
        message.sampling.logprobs = 0 if alternatives is None else integer("top_logprobs", alternatives)
    elif alternatives not in (None, 0):
        raise CallerFault("top_logprobs", "needs logprobs: true")
    stream, include_usage = stream_wishes(body)
    return Order((message,), stream, include_usage, None, names)


def completion_order(body: Body) -> Order:
    check_keys(body, COMPLETION_USED, COMPLETION_NEUTRAL)
    first = GenerateRequest()
    names = fill_common(body, first)
    if body.get("max_tokens") is not None:
        first.sampling.max_tokens = integer("max_tokens", body["max_tokens"], low=1)
    if body.get("logprobs") is not None:
        first.sampling.logprobs = integer("logprobs", body["logprobs"])
    messages = []
    for name, prompt in each_prompt(body.get("prompt")):
        message = GenerateRequest()
        message.CopyFrom(first)
        if isinstance(prompt, str):
            message.prompt = text(name, prompt)
        else:
            message.token_ids.SetInParent()
            message.token_ids.ids.extend(token_ids(name, prompt))
        messages.append(message)
    stream, include_usage = stream_wishes(body)
    return Order(tuple(messages), stream, include_usage, COMPLETION_MAX_TOKENS, names)


def each_prompt(value: Any) -> list[tuple[str, str | list[Any]]]:
    """OpenAI's four shapes: a string, token ids, or an array of either."""
    if value is None:
        raise CallerFault("prompt", "is needed", code="missing_required_parameter")
    if isinstance(value, str):
        return [("prompt", value)]
    if not isinstance(value, list):
        raise CallerFault("prompt", "must be a string or an array", code="invalid_type")
    if not value:
        raise CallerFault("prompt", "must not be empty")
    if isinstance(value[0], int):
        return [("prompt", value)]
    if len(value) > MAX_PROMPTS:
        raise CallerFault("prompt", f"has {len(value)} prompts; at most {MAX_PROMPTS} are accepted")
    prompts: list[tuple[str, str | list[Any]]] = []
    for index, entry in enumerate(value):
        if not isinstance(entry, str | list) or type(entry) is not type(value[0]):
            raise CallerFault(f"prompt[{index}]", "prompts must all be strings or all be token ids", code="invalid_type")
        prompts.append((f"prompt[{index}]" if len(value) > 1 else "prompt", entry))
    return prompts


def fill_common(body: Body, message: GenerateRequest) -> dict[str, str]:
    if body.get("model") is not None:
        message.model = text("model", body["model"])
    if body.get("request_id") is not None:
        message.request_id = text("request_id", body["request_id"])
    return fill_sampling(body, message.sampling) | HEADERS


def stream_wishes(body: Body) -> tuple[bool, bool]:
    stream = body.get("stream") is not None and flag("stream", body["stream"])
    if body.get("stream_options") is None:
        return stream, False
    options = mapping("stream_options", body["stream_options"])
    if not stream:
        raise CallerFault("stream_options", "needs stream: true")
    used = frozenset({"include_usage", "include_obfuscation"})
    check_keys(options, used, {"continuous_usage_stats": (False,)}, "stream_options.")
    wanted = options.get("include_usage")
    return stream, wanted is not None and flag("stream_options.include_usage", wanted)


def chat_message(path: str, value: Any) -> Message:
    entry = mapping(path, value)
    check_keys(entry, MESSAGE_USED, MESSAGE_NEUTRAL, f"{path}.")
    role = text(f"{path}.role", entry.get("role"))
    return Message(role=OPENAI_ROLES.get(role, role), content=content(f"{path}.content", entry.get("content"), role))


def content(path: str, value: Any, role: str) -> str:
    """Text parts are joined by newlines, as vLLM does for templates that take text."""
    if value is None and role == "assistant":
        return ""
    if not isinstance(value, list):
        return text(path, value)
    parts = []
    for index, part in enumerate(items(path, value)):
        field = f"{path}[{index}]"
        kind = mapping(field, part).get("type")
        if kind != "text":
            raise refuse(f"{field}.type", "only text is supported yet")
        parts.append(text(f"{field}.text", part.get("text")))
    return "\n".join(parts)
