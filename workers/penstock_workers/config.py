"""Configuration of a worker process.

Promise: every key is checked before anything starts, and a message names the key, its value and what would be accepted.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]

ROLE_OF_POOL = {"prefill": "prefill", "decode": "decode"}


class FakeSettings(BaseModel):
    """The deterministic engine: what a step costs and what it can hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_s: Seconds = Field(default=0.002, description="seconds of every step")
    prefill_s: Seconds = Field(default=0.0, description="seconds per prompt token computed in a step")
    decode_s: Seconds = Field(default=0.0, description="seconds per sequence that decodes in a step")
    context_s: Seconds = Field(default=0.0, description="seconds per context token of those sequences")
    time_scale: float = Field(
        default=1.0, ge=0, le=1000, description="real seconds per second of the model; 0 runs without waiting"
    )
    tokens_per_step: int = Field(default=1, ge=1, le=64, description="tokens a decoding sequence makes in one step")
    transfer_base_s: Seconds = Field(default=0.0, description="seconds of every KV pull")
    transfer_token_s: Seconds = Field(default=0.0, description="seconds per token of a KV pull")
    block_size: int = Field(default=32, ge=1, le=1024, description="tokens in a KV block")
    kv_blocks: int = Field(default=8192, ge=2, description="KV blocks")
    max_running: int = Field(default=256, ge=1, description="sequences in one step")
    max_batched_tokens: int = Field(default=8192, ge=1, description="tokens computed in one step")
    max_model_len: int = Field(default=131072, ge=2, description="tokens of a context")
    eos_probability: float = Field(default=0.0, ge=0, le=1, description="chance that a token is the end of the answer")
    kv_events: bool = Field(default=True, description="report changes of the KV cache")
    readable: bool = Field(default=True, description="answer with tokens that are whole printable text")


class WorkerConfig(BaseModel):
    """One worker: an engine, its gRPC server and the routers it reports to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker_id: str = Field(default="worker", min_length=1, max_length=200, description="unique among the service's workers")
    pool: Literal["prefill", "decode", "workers"] = Field(default="workers", description="what was deployed")
    source: str = Field(
        default="penstock://tiny", min_length=1, description="penstock://tiny, file:///PATH, hf://ORG/NAME or s3://BUCKET/PATH"
    )
    model: str = Field(default="tiny", min_length=1, description="served name")
    engine: Literal["vllm", "fake"] = Field(
        default="vllm", description="vllm, or the deterministic fake for load and fault tests"
    )
    engine_args: dict[str, Any] = Field(default_factory=dict, description="vLLM engine arguments, as EngineArgs names them")
    device: Literal["cpu", "gpu"] = Field(default="cpu", description="what the vLLM engine runs on")
    dtype: str | None = Field(default=None, description="vLLM dtype; default: vLLM's choice")
    cache_dir: str = Field(
        default="~/.cache/penstock/models", min_length=1, description="folder for downloaded models and digests"
    )
    ready_timeout_s: float = Field(default=600.0, gt=0, description="seconds that the engine may take to load")
    fake: FakeSettings = Field(default_factory=FakeSettings, description="settings of the fake engine")

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    advertise_host: str | None = Field(default=None, description="address that routers dial; default: host")
    port: Port = Field(default=0, description="gRPC port; 0: a free one")
    metrics_port: Port | None = Field(default=0, description="HTTP port of /metrics; 0: a free one; null: none")
    side_channel_port: Port = Field(default=0, description="NIXL side channel port; 0: a free one")

    routers: tuple[str, ...] = Field(default=(), description="host:port of each router's report server; names are resolved again")
    resolve_every_s: float = Field(default=2.0, gt=0, le=60, description="seconds between resolutions of the routers' names")
    load_report_s: float = Field(default=0.1, gt=0, le=1, description="seconds within which a load report is sent anyway")
    kv_lease_s: float = Field(default=30.0, gt=0, le=3600, description="seconds that KV is held for the next leg")
    hang_floor_s: float = Field(
        default=10.0,
        gt=0,
        description="least seconds without a step or an answer after which an engine is held for dead; above it, ten times the "
        "predicted step counts. A healthy engine may be that late: lazily loaded kernels, a grammar compiled under the "
        "interpreter's lock, a core taken away by others",
    )
    first_step_s: float = Field(
        default=120.0, gt=0, description="the same for steps whose like was not measured yet: compilation, a first long prompt"
    )
    drain_timeout_s: Seconds = Field(default=600.0, description="seconds that running legs may take while draining")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="least level logged")

    @model_validator(mode="after")
    def _routers_have_ports(self) -> Self:
        for router in self.routers:
            host, _, port = router.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError(f"routers: {router!r} is not host:port with a port from 1 to 65535")
        return self

    @property
    def role(self) -> str:
        return ROLE_OF_POOL.get(self.pool, "both")

    def numbered(self, number: int) -> "WorkerConfig":
        """The configuration of one of several workers in a process: a name and free ports of its own."""
        metrics = None if self.metrics_port is None else 0
        ports = {"port": 0, "metrics_port": metrics, "side_channel_port": 0} if number else {}
        return self.model_copy(update={"worker_id": f"{self.worker_id}-{number}", **ports})


def load_config(path: str | Path) -> WorkerConfig:
    """Reads YAML or JSON."""
    text = Path(path).read_text()
    if text.lstrip().startswith("{"):
        return WorkerConfig.model_validate(json.loads(text))
    import yaml  # only files written by hand need it

    return WorkerConfig.model_validate(yaml.safe_load(text))
