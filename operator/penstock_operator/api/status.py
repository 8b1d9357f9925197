"""The status of an LLMService: what the operator writes and nobody else.

Promise: a status read back from the API server is accepted whatever its version of Penstock wrote;
unknown fields are let through, because status is never input.
"""

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Endpoint(_Part):
    grpc: str = Field(default="", description="host:port of penstock.v1.Inference, inside the cluster.")
    http: str = Field(default="", description="host:port of the OpenAI-compatible API, inside the cluster.")


class Revision(_Part):
    current: str = Field(default="", description="Revision that serves.")
    updated: str = Field(default="", description="Revision that the spec asks for.")


class PoolStatus(_Part):
    name: str = Field(description="Name of the pool.")
    desired: int = Field(default=0, description="Workers asked for.")
    ready: int = Field(default=0, description="Workers that take requests, of all revisions.")
    draining: int = Field(default=0, description="Workers that end their running answers, of all revisions.")


class SloAttained(_Part):
    service_class: str = Field(alias="class", description="Service class.")
    ttft_attained: float | None = Field(default=None, description="Share of requests within the class's ttft, 0 to 1.")
    tpot_attained: float | None = Field(default=None, description="Share of requests within the class's tpot, 0 to 1.")


class Scaling(_Part):
    reason: str = Field(default="", description="Why the sizes are what they are.")
    last_change: str = Field(default="", description="When a size was last changed, RFC 3339.")


class Download(_Part):
    """A model on its way; absent while none is."""

    pods: int = Field(default=0, description="Pods that fetch the model.")
    percent: int = Field(default=0, description="How far the last of them is, 0 to 100, in steps of 5.")
    done_bytes: int = Field(default=0, description="Bytes that it has, rounded down.")
    total_bytes: int = Field(default=0, description="Bytes of the model; 0: not known yet.")


class RolloutProgress(_Part):
    target: str = Field(default="", description="Revision that grows.")
    ready: int = Field(default=0, description="Its greatest number of ready workers so far.")
    since: str = Field(default="", description="When that number was reached, RFC 3339.")


class Columns(_Part):
    """What `kubectl get llm` prints; programs read the other fields."""

    prefill: str = Field(default="", description="ready/desired of the pool prefill.")
    decode: str = Field(default="", description="ready/desired of the pool decode.")
    workers: str = Field(default="", description="ready/desired of the pool workers.")
    slo: str = Field(default="", description="Least attainment of all classes, in percent.")


class Condition(_Part):
    type: str = Field(max_length=316, description="Ready, Progressing, Degraded, SLOMet or Autoscaling.")
    status: str = Field(max_length=7, description="True, False or Unknown.")
    reason: str = Field(default="", max_length=1024, description="CamelCase, for programs.")
    message: str = Field(default="", max_length=32_768, description="For people.")
    last_transition_time: str = Field(default="", description="When the status last changed, RFC 3339.")
    observed_generation: int = Field(default=0, description="Generation of the spec that this is about.")


class Status(_Part):
    observed_generation: int = Field(default=0, description="Generation of the spec that this status is about.")
    phase: str = Field(default="", description="For people; programs read conditions.")
    model: str = Field(default="", description="Served name.")
    endpoint: Endpoint = Field(default=Endpoint(), description="Where clients call.")
    revision: Revision = Field(default=Revision(), description="Revisions of the workers.")
    pools: tuple[PoolStatus, ...] = Field(default=(), description="Pools of workers.")
    slo: tuple[SloAttained, ...] = Field(default=(), description="Attainment by class.")
    scaling: Scaling = Field(default=Scaling(), description="The autoscaler's last word.")
    rollout: RolloutProgress = Field(default=RolloutProgress(), description="How far the running rollout has come.")
    download: Download | None = Field(default=None, description="How far the model has been fetched.")
    columns: Columns = Field(default=Columns(), description="Columns of kubectl get llm.")
    conditions: tuple[Condition, ...] = Field(default=(), description="Ready, Progressing, Degraded, SLOMet, Autoscaling.")
