"""How Penstock configures a vLLM engine: pure functions, no vLLM import.

Promise: the keys that exact legs, hand-off and the router's view depend on are Penstock's, and are refused by
name when given; everything else is the caller's, in vLLM's own names with `-` or `_`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cbor2

from penstock_workers.connector.extras import CONNECTOR_CLASS, CONNECTOR_MODULE, PROGRESS_DELAY_US

# Key -> the setting to use instead.
OWNED: Mapping[str, str] = {
    "model": "the model's source",
    "tokenizer": "the model's source",
    "served_model_name": "the model's name",
    "kv_transfer_config": "nothing: KV transfer is always on",
    "kv_events_config": "nothing: KV events are always on",
    "enable_prefix_caching": "nothing: prefix caching is always on",
    "no_enable_prefix_caching": "nothing: prefix caching is always on",
    "prefix_caching_hash_algo": "nothing: it is sha256_cbor",
    "scheduling_policy": "nothing: it is priority",
    "skip_tokenizer_init": "nothing: structured output needs the tokenizer",
    "structured_outputs_config": "nothing: xgrammar, without free whitespace",
    "distributed_executor_backend": "nothing: it follows from the parallelism",
    "disable_log_stats": "nothing: the cost model needs every step",
    "enable_logging_iteration_details": "nothing: the cost model needs every step",
    "worker_cls": "nothing",
    "scheduler_cls": "nothing",
    "data_parallel_size": "replicas",
    "stream_interval": "nothing: routers coalesce under backlog",
    "tokens_only": "nothing: structured output needs the tokenizer",
    "kv_offloading_size": "nothing: Penstock's own connector moves KV",
}
CPU_DEFAULTS: Mapping[str, Any] = {
    "block_size": 32,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "max_num_seqs": 64,
}
_PYTHON_HASH_SEED_DEFAULT = "vllm-none-hash"  # what vLLM hashes where PYTHONHASHSEED is unset


class EngineArgsError(ValueError):
    """An engine argument that cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """Everything a vLLM engine is started from."""

    model_dir: str
    model_name: str
    model_digest: str  # hex
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"  # cpu or gpu
    host: str = "127.0.0.1"  # where other workers reach this one's KV
    nixl_port: int = 9200  # side channel
    kv_lease_s: int = 30
    # fork spares the child a second import of vLLM (12 s of CPU here). Only for a process whose threads are known:
    # a forked child keeps what other threads had locked.
    start_method: str = "spawn"
    ready_timeout_s: float = 600.0
    close_grace_s: float = 3.0
    log_level: str = "WARNING"
    prometheus: bool = True  # keep vllm:* metrics in the process's registry
    env: Mapping[str, str] = field(default_factory=dict)


def engine_kwargs(settings: VllmSettings, event_endpoint: str, replay_endpoint: str) -> dict[str, Any]:
    """The arguments of vLLM's AsyncEngineArgs; `kv_transfer_config` and `kv_events_config` as plain dicts."""
    given = {key.replace("-", "_"): value for key, value in settings.engine_args.items()}
    for key in given:
        if key in OWNED:
            raise EngineArgsError(f"engine argument {key!r} is set by Penstock; use {OWNED[key]}")
    defaults = dict(CPU_DEFAULTS) if settings.device == "cpu" else {}
    return (
        {"load_format": "auto"}
        | defaults
        | given
        | {
            "model": settings.model_dir,
            "served_model_name": settings.model_name,
            "enable_prefix_caching": True,
            "prefix_caching_hash_algo": "sha256_cbor",
            "scheduling_policy": "priority",
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
            "enable_logging_iteration_details": True,
            "disable_log_stats": True,  # only vLLM's own log lines: Penstock's statistics do not depend on it
            "kv_transfer_config": {
                "kv_connector": CONNECTOR_CLASS,
                "kv_connector_module_path": CONNECTOR_MODULE,
                "kv_role": "kv_both",
                # A pull that fails is computed at once by the engine that has the request: never a wrong token,
                # no round trip; it is reported as a failed transfer.
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": {
                    "kv_lease_duration": settings.kv_lease_s,
                    # Between hosts with RDMA the thread has a core of its own to poll on.
                    PROGRESS_DELAY_US: 100_000 if settings.device == "cpu" else 0,
                },
            },
            "kv_events_config": {
                "enable_kv_cache_events": True,
                "publisher": "zmq",
                "endpoint": event_endpoint,
                "replay_endpoint": replay_endpoint,
                "topic": "kv",
            },
        }
    )


def environment(settings: VllmSettings, single_process: bool) -> dict[str, str]:
    """What vLLM, NIXL and UCX read from the environment of the engine's process."""
    env = {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": settings.host,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(settings.nixl_port),
        "VLLM_LOGGING_LEVEL": settings.log_level,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(max(1, round(settings.ready_timeout_s))),
    }
    if settings.device == "cpu":
        # Some of vLLM's helpers are compiled at their first use whatever enforce_eager says: the first request for
        # log probabilities would stop the engine for half a minute.
        env |= {"UCX_TLS": "tcp,self", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "TORCH_COMPILE_DISABLE": "1"}
    if settings.host in ("127.0.0.1", "localhost", "::1"):
        env |= {"VLLM_HOST_IP": "127.0.0.1", "UCX_NET_DEVICES": "lo"}
    if single_process:
        # The EngineCore holds the model itself: on CPU vLLM turns the uni executor into one more process otherwise.
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return env | dict(settings.env)


def hash_root(environ: Mapping[str, str] = os.environ) -> bytes:
    """The parent of a first block, as vLLM computes it in the engine's process."""
    seed = environ.get("PYTHONHASHSEED", _PYTHON_HASH_SEED_DEFAULT)
    return hashlib.sha256(cbor2.dumps(seed, canonical=True)).digest()


def kv_compat(**facts: Any) -> str:
    """Equal where KV may move between two engines."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
