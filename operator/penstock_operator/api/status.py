"""The status of an LLMService: what the operator writes and nobody else.

Promise: a status read back from the API server is accepted whatever its version of Penstock wrote;
unknown fields are let through, because status is never input.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Endpoint(_Part):
    grpc: str = ""
    http: str = ""


class Revision(_Part):
    current: str = ""
    updated: str = ""


class PoolStatus(_Part):
    name: str
    desired: int = 0
    ready: int = 0
    draining: int = 0


class SloAttained(_Part):
    service_class: str = Field(alias="class")
    ttft_attained: float | None = None
    tpot_attained: float | None = None


class Scaling(_Part):
    reason: str = ""
    last_change: str = ""


class Status(_Part):
    observed_generation: int = 0
    phase: str = Field(default="", description="For people; programs read conditions.")
    endpoint: Endpoint = Endpoint()
    revision: Revision = Revision()
    pools: tuple[PoolStatus, ...] = ()
    slo: tuple[SloAttained, ...] = ()
    scaling: Scaling = Scaling()
    conditions: tuple[dict[str, Any], ...] = Field(default=(), description="Ready, Progressing, Degraded, SLOMet, Autoscaling.")
