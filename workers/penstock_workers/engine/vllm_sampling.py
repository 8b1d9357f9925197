"""From the protocol's sampling settings to what vLLM is asked for.

Promise: a leg is sampled as vLLM's OpenAI server would sample the whole answer; a leg's own bound changes
nothing but where it ends.
"""

from dataclasses import dataclass
from typing import Any

from penstock_proto.v1.common_pb2 import Sampling
from penstock_workers.connector import extras
from penstock_workers.engine.protocol import EngineLeg


@dataclass(frozen=True, slots=True)
class LegBounds:
    max_tokens: int  # over the whole answer, as vLLM counts: emitted tokens included
    min_tokens: int
    holds: bool  # the leg's bound comes before the answer's: its KV is held


def bounds(leg: EngineLeg, max_model_len: int) -> LegBounds:
    room = max_model_len - (len(leg.token_ids) - leg.emitted)
    whole = min(leg.sampling.max_tokens, room) if leg.sampling.HasField("max_tokens") else room
    bound = leg.emitted + leg.max_leg_tokens if leg.max_leg_tokens else whole
    most = min(whole, bound)
    return LegBounds(max_tokens=most, min_tokens=min(leg.sampling.min_tokens, most), holds=bound < whole)


def whole_tokens(leg: EngineLeg, max_model_len: int) -> int:
    room = max_model_len - (len(leg.token_ids) - leg.emitted)
    return min(leg.sampling.max_tokens, room) if leg.sampling.HasField("max_tokens") else room


def structured(sampling: Sampling) -> dict[str, Any] | None:
    """The arguments of vLLM's StructuredOutputsParams."""
    match sampling.WhichOneof("structured"):
        case "json_schema":
            return {"json": sampling.json_schema}
        case "regex":
            return {"regex": sampling.regex}
        case "choice":
            return {"choice": list(sampling.choice.values)}
        case "grammar":
            return {"grammar": sampling.grammar}
        case "json_object" if sampling.json_object:
            return {"json_object": True}
    return None


def sampling_kwargs(leg: EngineLeg, max_model_len: int, kv: dict[str, Any] | None) -> dict[str, Any]:
    """The arguments of vLLM's SamplingParams, structured output apart."""
    s, limit = leg.sampling, bounds(leg, max_model_len)
    extra: dict[str, Any] = {extras.ANSWER_TOKENS: whole_tokens(leg, max_model_len)}
    if leg.emitted:
        extra[extras.EMITTED] = leg.emitted
    params = dict(kv or {})
    if limit.holds:
        params["do_remote_decode"] = True
        params.setdefault("do_remote_prefill", False)
    if params:
        extra[extras.KV] = params
    return {
        "n": 1,
        "max_tokens": limit.max_tokens,
        "min_tokens": limit.min_tokens,
        "temperature": s.temperature if s.HasField("temperature") else 1.0,
        "top_p": s.top_p if s.HasField("top_p") else 1.0,
        "top_k": s.top_k if s.HasField("top_k") else 0,
        "min_p": s.min_p if s.HasField("min_p") else 0.0,
        "presence_penalty": s.presence_penalty if s.HasField("presence_penalty") else 0.0,
        "frequency_penalty": s.frequency_penalty if s.HasField("frequency_penalty") else 0.0,
        "repetition_penalty": s.repetition_penalty if s.HasField("repetition_penalty") else 1.0,
        "seed": s.seed if s.HasField("seed") else None,
        "stop_token_ids": list(s.stop_token_ids),
        "ignore_eos": s.ignore_eos,
        "logprobs": s.logprobs if s.HasField("logprobs") else None,
        "detokenize": False,
        "extra_args": extra,
    }
