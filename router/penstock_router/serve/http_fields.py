"""Fields that chat and completion bodies share, from JSON to the protocol's Sampling.

Promise: a field is used, is harmless and ignored, or is refused by name; a null is a field not sent. Every
message names the field as the caller wrote it.
"""

import json
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Final

from penstock_proto.v1.common_pb2 import Sampling

from ..faults import CallerFault

Body = Mapping[str, Any]
MAX_UINT32: Final = 2**32 - 1
MAX_INT64: Final = 2**63 - 1
MAX_KEY_CHARS: Final = 64
MAX_ITEMS: Final = 10_000
MAX_TOKEN_IDS: Final = 1 << 22

FLOATS: Final = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
UINTS: Final = ("min_tokens", "n")
SHARED: Final = frozenset(
    {
        *FLOATS, *UINTS, "model", "top_k", "seed", "stop", "stop_token_ids", "ignore_eos", "stream", "stream_options",
        "logprobs", "max_tokens", "response_format", "structured_outputs", "request_id",
        "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    }
)  # fmt: skip
# They tell a service about the caller, or allow what it need not do.
HARMLESS: Final = frozenset(
    {
        "user", "metadata", "store", "parallel_tool_calls", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "prediction", "session_id",
    }
)  # fmt: skip
# OpenAI's and vLLM's fields that are not built: accepted only where they ask for what happens anyway.
NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "prompt_logprobs": (),
    "logprob_token_ids": (),
    "prompt_embeds": (),
    "priority": (0,),
    "cache_salt": (),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
    "repetition_detection": (),
    "stream_interval": (1,),
    "watermarking": (False,),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "guided_whitespace_pattern": (),
    "guided_decoding_backend": (),
    "thinking_token_budget": (),
}
STRUCTURED_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "disable_any_whitespace": (False,),
    "disable_additional_properties": (False,),
    "whitespace_pattern": (),
    "structural_tag": (),
}


def refuse(field: str, message: str = "not supported yet") -> CallerFault:
    return CallerFault(field, message, code="unsupported_parameter")


def check_keys(body: Body, used: frozenset[str], neutral: Mapping[str, tuple[Any, ...]], path: str = "") -> None:
    for key, value in body.items():
        if value is None or key in used:
            continue
        field = path + key[:MAX_KEY_CHARS].encode("ascii", "backslashreplace").decode()
        if key not in neutral:
            raise CallerFault(field, "unknown field", code="unknown_parameter")
        if value not in neutral[key]:
            allowed = "".join(f" other than {json.dumps(accepted)}" for accepted in neutral[key])
            raise refuse(field, f"not supported yet{allowed}")


def text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise CallerFault(field, "must be a string", code="invalid_type")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON's \ud800 alone
        raise CallerFault(field, f"has half a surrogate pair at character {error.start}") from None
    return value


def flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise CallerFault(field, "must be true or false", code="invalid_type")
    return value


def number(field: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise CallerFault(field, "must be a number", code="invalid_type")
    try:
        return float(value)
    except OverflowError:
        raise CallerFault(field, "must be a number within double precision") from None


def integer(field: str, value: Any, low: int = 0, high: int = MAX_UINT32) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise CallerFault(field, "must be an integer", code="invalid_type")
    if not low <= value <= high:
        shown = value if abs(value) <= 2**64 else "an integer beyond 64 bits"
        raise CallerFault(field, f"must be {low} to {high}, not {shown}")
    return value


def items(field: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise CallerFault(field, "must be an array", code="invalid_type")
    if len(value) > MAX_ITEMS:
        raise CallerFault(field, f"has {len(value)} entries; at most {MAX_ITEMS} are accepted")
    return value


def token_ids(field: str, value: list[Any]) -> "array[int]":
    """A long prompt must not be looked at one by one: everybody's tokens would wait."""
    if len(value) > MAX_TOKEN_IDS:
        raise CallerFault(field, f"has {len(value)} ids; at most {MAX_TOKEN_IDS} are accepted", code="context_length_exceeded")
    if set(map(type, value)) <= {int}:
        try:
            return array("I", value)
        except OverflowError:
            pass  # the loop finds which
    at = next(i for i, entry in enumerate(value) if type(entry) is not int or not 0 <= entry <= MAX_UINT32)
    integer(f"{field}[{at}]", value[at])
    raise AssertionError("integer refuses what is no uint32")


def mapping(field: str, value: Any) -> Body:
    if not isinstance(value, dict):
        raise CallerFault(field, "must be an object", code="invalid_type")
    return value


def fill_sampling(body: Body, sampling: Sampling) -> dict[str, str]:
    """Sets what the body names; returns the caller's names of fields that the protocol calls otherwise."""
    for name in FLOATS:
        if body.get(name) is not None:
            setattr(sampling, name, number(name, body[name]))
    for name in UINTS:
        if body.get(name) is not None:
            setattr(sampling, name, integer(name, body[name], low=name == "n"))
    if body.get("top_k") is not None:
        sampling.top_k = max(0, integer("top_k", body["top_k"], low=-1))  # -1 is vLLM's other word for all
    if body.get("seed") is not None:
        sampling.seed = integer("seed", body["seed"], low=-MAX_INT64 - 1, high=MAX_INT64)
    if body.get("ignore_eos") is not None:
        sampling.ignore_eos = flag("ignore_eos", body["ignore_eos"])
    stop = body.get("stop")
    if isinstance(stop, str):
        sampling.stop.append(text("stop", stop))
    elif stop is not None:
        sampling.stop.extend(text(f"stop[{i}]", entry) for i, entry in enumerate(items("stop", stop)))
    if body.get("stop_token_ids") is not None:
        ids = items("stop_token_ids", body["stop_token_ids"])
        sampling.stop_token_ids.extend(integer(f"stop_token_ids[{i}]", entry) for i, entry in enumerate(ids))
    return fill_structured(body, sampling)


def fill_structured(body: Body, sampling: Sampling) -> dict[str, str]:
    found = [*structured_by_format(body), *structured_by_extras(body)]
    if len(found) > 1:
        raise CallerFault(found[1][0], f"cannot be combined with {found[0][0]}")
    for field, name, value in found:
        FILL[name](sampling, field, value)
        return {name: field}
    return {}


Found = list[tuple[str, str, Any]]  # the caller's field, the protocol's, the value


def structured_by_format(body: Body) -> Found:
    if body.get("response_format") is None:
        return []
    form = mapping("response_format", body["response_format"])
    match form.get("type"):
        case "text":
            return []
        case "json_object":
            return [("response_format", "json_object", True)]
        case "json_schema":
            given = mapping("response_format.json_schema", form.get("json_schema"))
            return [("response_format.json_schema.schema", "json_schema", given.get("schema"))]
    raise CallerFault("response_format.type", "must be one of: text, json_object, json_schema")


def structured_by_extras(body: Body) -> Found:
    found: Found = []
    for name, target in (("json", "json_schema"), ("regex", "regex"), ("choice", "choice"), ("grammar", "grammar")):
        if body.get(f"guided_{name}") is not None:
            found.append((f"guided_{name}", target, body[f"guided_{name}"]))
    if body.get("structured_outputs") is None:
        return found
    extra = mapping("structured_outputs", body["structured_outputs"])
    targets = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
    check_keys(extra, frozenset({*targets, "json_object"}), STRUCTURED_NEUTRAL, "structured_outputs.")
    for name, target in targets.items():
        if extra.get(name) is not None:
            found.append((f"structured_outputs.{name}", target, extra[name]))
    if extra.get("json_object") is not None and flag("structured_outputs.json_object", extra["json_object"]):
        found.append(("structured_outputs.json_object", "json_object", True))
    return found


def fill_schema(sampling: Sampling, field: str, value: Any) -> None:
    if isinstance(value, str):
        sampling.json_schema = text(field, value)
        return
    try:
        sampling.json_schema = json.dumps(mapping(field, value), allow_nan=False)
    except ValueError:
        raise CallerFault(field, "must not hold NaN or infinite numbers") from None


def fill_regex(sampling: Sampling, field: str, value: Any) -> None:
    sampling.regex = text(field, value)


def fill_choice(sampling: Sampling, field: str, value: Any) -> None:
    sampling.choice.SetInParent()
    sampling.choice.values.extend(text(f"{field}[{i}]", entry) for i, entry in enumerate(items(field, value)))


def fill_grammar(sampling: Sampling, field: str, value: Any) -> None:
    sampling.grammar = text(field, value)


def fill_json_object(sampling: Sampling, field: str, value: Any) -> None:
    sampling.json_object = True


FILL: Final[Mapping[str, Callable[[Sampling, str, Any], None]]] = {
    "json_schema": fill_schema,
    "regex": fill_regex,
    "choice": fill_choice,
    "grammar": fill_grammar,
    "json_object": fill_json_object,
}
