"""Keywords of `generate` and `stream` to a GenerateRequest.

Promise: what the protocol cannot carry is refused here with the field's name; every other check is
the service's, so that all clients get the same answer to the same mistake.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from penstock_client.errors import InvalidArgument
from penstock_proto.v1 import common_pb2, inference_pb2


class Options(TypedDict, total=False):
    """Keywords that `generate` and `stream` share; what is left out is the service's default."""

    messages: Sequence[Mapping[str, str]]  # instead of the prompt: role and content each
    token_ids: Sequence[int]  # instead of the prompt: taken as they are
    model: str
    request_id: str
    service_class: str
    explain: bool  # return the placement decision
    program: str | Mapping[str, Any]  # id, or {id, last_step, tool}
    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    n: int
    logprobs: int
    ignore_eos: bool
    json_schema: str | Mapping[str, Any]
    regex: str
    choice: Sequence[str]
    grammar: str
    json_object: bool


_PLAIN = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "n",
    "logprobs",
    "ignore_eos",
)
_STRUCTURED = ("json_schema", "regex", "choice", "grammar", "json_object")
_TOP = ("model", "request_id", "service_class", "explain")
_KNOWN = frozenset(Options.__annotations__)


def build(prompt: str | None, options: Options) -> inference_pb2.GenerateRequest:
    """The request, or InvalidArgument naming the keyword that cannot be sent."""
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    unknown = sorted(given.keys() - _KNOWN)
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; accepted: {', '.join(sorted(_KNOWN))}")
    request = inference_pb2.GenerateRequest()
    _set_input(request, prompt, given)
    for key in _TOP:
        if key in given:
            _assign(request, key, given[key])
    if "program" in given:
        program = given["program"]
        fields = {"id": program} if isinstance(program, str) else dict(program)
        for key, value in fields.items():
            _assign(request.program, key, value, prefix="program.")
    _set_sampling(request.sampling, given)
    return request


def _set_input(request: inference_pb2.GenerateRequest, prompt: str | None, given: Mapping[str, Any]) -> None:
    inputs = [key for key in ("messages", "token_ids") if key in given]
    if prompt is not None:
        inputs.insert(0, "prompt")
    if len(inputs) != 1:
        wrong = f"{' and '.join(inputs)} were given" if inputs else "none was given"
        raise InvalidArgument(f"prompt: give exactly one of prompt, messages= and token_ids=; {wrong}", field="prompt")
    if inputs == ["prompt"]:
        _assign(request, "prompt", prompt)
    elif inputs == ["token_ids"]:
        # An empty list is set too, so that the service refuses it by name.
        request.token_ids.SetInParent()
        _extend(request.token_ids.ids, given["token_ids"], "token_ids")
    else:
        request.chat.SetInParent()
        _add_messages(request.chat, given["messages"])


def _add_messages(chat: inference_pb2.Chat, messages: Any) -> None:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InvalidArgument("messages: must be a list of {role, content}", field="messages")
    for position, message in enumerate(messages):
        name = f"messages[{position}]"
        if not isinstance(message, Mapping):
            raise InvalidArgument(f"{name}: must be a mapping with role and content", field=name)
        added = chat.messages.add()
        for key, value in message.items():
            _assign(added, str(key), value, prefix=f"{name}.")


def _set_sampling(sampling: common_pb2.Sampling, given: Mapping[str, Any]) -> None:
    # The message is always present: an empty one means "all defaults".
    for key in _PLAIN:
        if key in given:
            _assign(sampling, key, given[key])
    if "stop" in given:
        stop = given["stop"]
        _extend(sampling.stop, [stop] if isinstance(stop, str) else stop, "stop")
    if "stop_token_ids" in given:
        _extend(sampling.stop_token_ids, given["stop_token_ids"], "stop_token_ids")
    structured = [key for key in _STRUCTURED if key in given]
    if len(structured) > 1:
        raise InvalidArgument(f"{structured[1]}: give at most one of {', '.join(_STRUCTURED)}", field=structured[1])
    for key in structured:
        value = given[key]
        if key == "choice":
            sampling.choice.SetInParent()
            _extend(sampling.choice.values, value, "choice")
        elif key == "json_schema" and not isinstance(value, str):
            sampling.json_schema = _json(value)
        else:
            _assign(sampling, key, value)


def _json(schema: Any) -> str:
    try:
        return json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"json_schema: not JSON: {error}", field="json_schema") from error


def _assign(message: Any, key: str, value: Any, prefix: str = "") -> None:
    name = prefix + key
    if key not in message.DESCRIPTOR.fields_by_name:
        known = ", ".join(message.DESCRIPTOR.fields_by_name)
        raise InvalidArgument(f"{name}: no such field; accepted: {known}", field=name)
    try:
        setattr(message, key, value)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidArgument(f"{name}: {_why(error)}", field=name) from error


def _extend(target: Any, values: Any, name: str) -> None:
    if isinstance(values, str | bytes):
        raise InvalidArgument(f"{name}: must be a list, not {type(values).__name__}", field=name)
    try:
        target.extend(values)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{name}: {_why(error)}", field=name) from error


def _why(error: Exception) -> str:
    # protobuf's TypeErrors quote the value, which may be a prompt; its ValueErrors quote numbers only.
    return str(error) if isinstance(error, ValueError) and not isinstance(error, UnicodeError) else "has a wrong type"
