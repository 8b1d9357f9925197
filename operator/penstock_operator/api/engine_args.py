"""Checks of `engine.args` against the pinned vLLM's own engine arguments.

Promise: an argument vLLM would not know, one of the wrong type, and one that Penstock sets itself are
refused before any engine starts. `engine_args.json` is generated from vLLM by
`python tests/operator/engine_args_table.py --write`, and a test compares the two.
"""

import json
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any

_TOPOLOGY = "topology.<pool>.parallelism"
_OWN = "Penstock sets it"

# Keys that Penstock owns -> what to use instead.
OWNED: dict[str, str] = {
    "model": "use model.source",
    "model_weights": "use model.source",
    "tokenizer": "it comes with model.source",
    **dict.fromkeys(("revision", "code_revision", "tokenizer_revision"), "use model.source, hf://ORG/NAME@REVISION"),
    "hf_config_path": "it comes with model.source",
    "served_model_name": "use model.name",
    "hf_token": "use model.secretRef",
    "download_dir": "use model.cache",
    "tensor_parallel_size": f"use {_TOPOLOGY}.tensor",
    "pipeline_parallel_size": f"use {_TOPOLOGY}.pipeline",
    "enable_lora": "use model.adapters",
    "default_mm_loras": "use model.adapters",
    **dict.fromkeys(
        (
            "max_loras",
            "max_cpu_loras",
            "max_lora_rank",
            "max_lora_cls_labels",
            "lora_dtype",
            "lora_target_modules",
            "fully_sharded_loras",
            "specialize_active_lora",
            "enable_mixed_moe_lora_format",
            "enable_moe_shared_loras",
            "enable_tower_connector_lora",
        ),
        "it is without effect until model.adapters are built",
    ),
    "prefill_context_parallel_size": f"it is not built yet; use {_TOPOLOGY}.tensor",
    **dict.fromkeys(("kv_offloading_size", "kv_offloading_backend"), "it is not built yet: Penstock's own connector moves KV"),
    **dict.fromkeys(("enable_elastic_ep", "elastic_ep_max_dp_size"), f"{_OWN}; use topology.<pool>.replicas"),
    "tokens_only": f"{_OWN}: structured output needs the tokenizer",
    "runner": f"{_OWN}: generate",
    "convert": f"{_OWN}: none",
    "skip_tokenizer_init": f"{_OWN}: structured output needs the tokenizer",
    "structured_outputs_config": f"{_OWN}: xgrammar, without free whitespace",
    "enable_logging_iteration_details": f"{_OWN}: cost models need every step",
    "enable_prefix_caching": f"{_OWN}: routing needs the prefix cache",
    "prefix_caching_hash_algo": f"{_OWN}: sha256_cbor, which routers compute too",
    "kv_events_config": f"{_OWN}: routers follow the KV cache by it",
    "kv_transfer_config": f"{_OWN}: prefill and decode move KV by it; use topology",
    "scheduling_policy": f"{_OWN}: priority; use slo.classes[].priority",
    "scheduler_cls": _OWN,
    "worker_cls": _OWN,
    "worker_extension_cls": _OWN,
    "distributed_executor_backend": _OWN,
    "enable_log_requests": f"{_OWN}: prompts are never logged",
    "disable_log_stats": f"{_OWN}: cost models need the statistics",
    "stream_interval": f"{_OWN}: 1, tokens are never held",
    "generation_config": "it comes with model.source; use override-generation-config",
    **dict.fromkeys(("nnodes", "node_rank", "master_addr", "master_port", "device_ids"), f"{_OWN}: Ray places engines"),
}
_OWNED_PREFIX = "data_parallel_"

_KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list,),
    "dict": (dict,),
}


@cache
def table() -> dict[str, dict[str, Any]]:
    """Argument -> {kind, choices, keys, optional}, of the pinned vLLM. Several kinds are joined by a slash."""
    text = resources.files("penstock_operator.api").joinpath("engine_args.json").read_text()
    known: dict[str, dict[str, Any]] = json.loads(text)["args"]
    return known


def check(args: dict[str, Any]) -> None:
    """Raises ValueError naming the first argument that cannot stand."""
    seen: dict[str, str] = {}
    for key, value in args.items():
        name = python_name(key)
        if name in seen:
            raise ValueError(f"{key} and {seen[name]} are the same argument")
        seen[name] = key
        if name in OWNED or name.startswith(_OWNED_PREFIX):
            raise ValueError(f"{key} may not be set here: {OWNED.get(name, f'{_OWN}; use topology.<pool>.replicas')}")
        _check_known(key, name)
        _check_type(key, value, table()[name])


def python_name(key: str) -> str:
    """`max-model-len`, as on vLLM's command line, to `max_model_len`."""
    return key.replace("-", "_")


def _check_known(key: str, name: str) -> None:
    if name in table():
        return
    if name.startswith("no_") and name[3:] in table():
        raise ValueError(f"{key} is written {name[3:].replace('_', '-')}: false")
    offered = table().keys() - OWNED.keys()
    near = [one.replace("_", "-") for one in get_close_matches(name, offered, n=3)]
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise ValueError(f"{key} is no argument of the pinned vLLM{hint}")


def _check_type(key: str, value: Any, known: dict[str, Any]) -> None:
    if value is None and known.get("optional"):
        return
    choices = known.get("choices")
    if choices:
        if value not in choices:
            raise ValueError(f"{key}: {value!r} is none of {', '.join(map(str, choices))}")
        return
    if known["kind"] == "config":
        _check_config(key, value, known["keys"])
        return
    wanted = tuple(one for part in known["kind"].split("/") for one in _KINDS.get(part, ()))
    # A bool is an int to Python, never to a reader of YAML.
    if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
        raise ValueError(f"{key}: {value!r} is not of type {known['kind'].replace('/', ' or ')}")


def _check_config(key: str, value: Any, keys: list[str]) -> None:
    """One of vLLM's nested configurations."""
    if not isinstance(value, dict):
        raise ValueError(f"{key}: {value!r} is not of type dict")
    for one in value:
        if one not in keys:
            near = get_close_matches(str(one), keys, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"accepted are {', '.join(keys[:8])} ..."
            raise ValueError(f"{key}: {one!r} is no key of it; {hint}")
