"""The router's configuration: one file, checked whole before anything starts."""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[^:\s]*):\d{1,5}$")]
Prefer = Literal["auto", "disaggregated", "colocated"]


class ConfigError(Exception):
    """The file is not a router's configuration; the message names the key, the value and what would be accepted."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServiceClass(Frozen):
    """One SLO class."""

    name: str = Field(min_length=1, max_length=63, description="what requests name")
    ttft_s: float = Field(default=0.5, gt=0, description="objective: seconds to the first token")
    tpot_s: float = Field(default=0.05, gt=0, description="objective: seconds per output token after the first")
    priority: int = Field(default=0, ge=-1000, le=1000, description="higher is served first")


class RequestLimits(Frozen):
    """What one client can ask of this router."""

    max_prompt_chars: int = Field(default=16 << 20, ge=1, description="characters of a prompt")
    max_message_bytes: int = Field(default=64 << 20, ge=1024, description="bytes of one gRPC message")
    max_body_bytes: int = Field(default=16 << 20, ge=1024, description="bytes of one HTTP body")
    max_streams_per_connection: int = Field(default=4096, ge=1, description="gRPC calls open at once on one connection")
    max_open_requests: int = Field(default=16_384, ge=1, description="requests open at once; further ones are shed")
    max_held_requests: int = Field(default=4096, ge=0, description="requests that wait for a worker; further ones are shed")


class RouterConfig(Frozen):
    """Everything a router is told."""

    router_id: str = Field(default="router-0", min_length=1, max_length=128, description="unique among the routers of a service")
    grpc_listen: Address = Field(default="127.0.0.1:9000", description="host:port of Inference; port 0 takes a free one")
    http_listen: Address = Field(default="127.0.0.1:8000", description="host:port of the OpenAI-compatible API and metrics")
    reports_listen: Address = Field(default="127.0.0.1:9001", description="host:port of Fleet, which workers dial")
    model: str = Field(default="", max_length=128, description="served name; empty: whatever the workers say they serve")
    topology_mode: Prefer = Field(default="auto", description="auto: the placement predicted fastest; else what to prefer")
    default_class: str = Field(default="", description="class of requests that name none; empty: the first class")
    classes: tuple[ServiceClass, ...] = Field(
        default=(ServiceClass(name="default", ttft_s=0.5, tpot_s=0.05),), min_length=1, description="SLO classes"
    )
    limits: RequestLimits = Field(default=RequestLimits(), description="what one client can ask")
    cache_dir: Path | None = Field(default=None, description="where model files are kept; unset: ~/.cache/penstock/models")
    text_cache_mib: int = Field(
        default=128, ge=1, le=65_536, description="MiB of tokenized text kept for reuse, per model that is served"
    )
    hold_s: float = Field(default=30.0, ge=0, description="seconds a request waits for a worker before UNAVAILABLE")
    stale_after_s: float = Field(default=1.0, gt=0, description="seconds of silence after which a worker gets no new work")
    panic_threshold: float = Field(
        default=0.5, ge=0, le=1, description="below this fraction of fresh workers, staleness is ignored"
    )
    forget_after_s: float = Field(
        default=5.0, gt=0, description="seconds after its last report at which a lost worker is forgotten"
    )
    lost_after_s: float = Field(
        default=3.0, gt=0, description="seconds of silence after which a worker's running legs go on elsewhere"
    )
    pull_timeout_s: float = Field(
        default=10.0, gt=0, description="seconds that a leg may wait for KV from another worker before it is computed instead"
    )
    lease_margin_s: float = Field(default=2.0, ge=0, description="KV is not pulled within this many seconds of its lease's end")
    stall_s: float = Field(default=60.0, gt=0, description="a client that takes nothing for so long is cancelled")
    grace_s: float = Field(default=30.0, ge=0, description="seconds that open streams get on SIGTERM")
    ready_after_s: float = Field(default=5.0, ge=0, description="/readyz is true after so long even without a worker")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level that is logged")

    @field_validator("grpc_listen", "http_listen", "reports_listen")
    @classmethod
    def _port_in_range(cls, value: str) -> str:
        if int(value.rpartition(":")[2]) > 65535:
            raise ValueError(f"port {value.rpartition(':')[2]} is above 65535")
        return value

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        names = [c.name for c in self.classes]
        if len(set(names)) != len(names):
            raise ValueError(f"classes: names must differ, got {names}")
        if self.default_class and self.default_class not in names:
            raise ValueError(f"default_class: {self.default_class!r} is none of {names}")
        if self.lost_after_s < self.stale_after_s:
            raise ValueError(f"lost_after_s: {self.lost_after_s} must be at least stale_after_s, {self.stale_after_s}")
        if self.forget_after_s < self.stale_after_s:
            raise ValueError(f"forget_after_s: {self.forget_after_s} must be at least stale_after_s, {self.stale_after_s}")
        return self

    @property
    def default_service_class(self) -> str:
        return self.default_class or self.classes[0].name


def parse(text: str, source: str = "configuration") -> RouterConfig:
    """YAML or JSON."""
    try:
        data = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{source}: neither JSON nor YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: must be a mapping, not {type(data).__name__}")
    try:
        return RouterConfig.model_validate(data)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']} (got {e['input']!r:.80})" for e in error.errors()]
        raise ConfigError(f"{source}: {'; '.join(faults)}") from None


def load(path: Path) -> RouterConfig:
    try:
        return parse(path.read_text(), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
