"""The LLMService `serving.penstock.dev/v1alpha1`, as models.

Promise: these models are the one definition of the manifest; the CRD, the operator and `penstock up`
read them, and a field that is not here is refused. What a version of Penstock cannot do yet is not
decided here but in `penstock_operator.api.unsupported`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

from penstock_operator.api import rules
from penstock_operator.api.engine_args import check as check_engine_args
from penstock_operator.api.scalars import Duration, LabelValue, Name, Quantity, Resources, word
from penstock_operator.api.status import Status

GROUP = "serving.penstock.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMService"


class Part(BaseModel):
    """Frozen, camelCase in the manifest, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Toleration(Part):
    """As in a Kubernetes pod."""

    key: str | None = Field(default=None, max_length=317, description="Key of the taint; unset: every key.")
    operator: Literal["Exists", "Equal"] | None = Field(default=None, description="Unset: Equal.")
    value: str | None = Field(default=None, max_length=63, description="Value of the taint, with Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Unset: every effect."
    )
    toleration_seconds: int | None = Field(default=None, strict=True, description="Seconds that NoExecute is tolerated.")


class SecretRef(Part):
    name: Name = Field(
        description="A Secret in the service's namespace; hf:// reads its key token, s3:// AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, and where they are there AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL."
    )


class ModelCache(Part):
    pvc: Name = Field(description="A PersistentVolumeClaim that keeps downloaded models.")


class Adapter(Part):
    name: str = Field(min_length=1, max_length=128, description="The name clients ask for.")
    source: str = Field(max_length=512, description="hf://ORG/NAME, pvc://CLAIM/PATH, s3://BUCKET/PATH or file:///PATH.")

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        return rules.source(value, ("hf", "pvc", "s3", "file"))


class Model(Part):
    source: str = Field(
        max_length=512, description="hf://ORG/NAME, pvc://CLAIM/PATH, s3://BUCKET/PATH, file:///PATH or penstock://tiny."
    )
    name: str = Field(
        default="", max_length=128, pattern=r"^[A-Za-z0-9_./:@+-]*$", description="Served name; default: the source's last part."
    )
    secret_ref: SecretRef | None = Field(default=None, description="Credentials of the source.")
    cache: ModelCache | None = Field(default=None, description="Where downloaded models are kept between pods.")
    adapters: tuple[Adapter, ...] = Field(default=(), max_length=64, description="LoRA adapters served beside the model.")

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
        return rules.source(value, ("hf", "pvc", "s3", "file", "penstock"))

    @property
    def served_name(self) -> str:
        return self.name or self.source.rstrip("/").rsplit("/", 1)[-1]


class EnvVar(Part):
    name: str = Field(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Name of the variable.")
    value: str | None = Field(default=None, max_length=32_768, description="Its value.")
    value_from: dict[str, Any] | None = Field(default=None, description="As in a Kubernetes container.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise ValueError("give value or valueFrom, not both")
        return self


class Engine(Part):
    device: Literal["gpu", "cpu"] = Field(default="gpu", description="What engines run on.")
    image: str | None = Field(default=None, min_length=1, max_length=512, description="Container image of the workers.")
    env: tuple[EnvVar, ...] = Field(default=(), max_length=128, description="Environment variables of the workers.")
    shm: Quantity | None = Field(default=None, description="Size of /dev/shm in a worker, in bytes.")
    args: dict[str, Any] = Field(default_factory=dict, description="vLLM engine arguments, as on its command line.")

    @field_validator("args")
    @classmethod
    def _check_args(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_engine_args(value)
        return value


class Parallelism(Part):
    tensor: int = Field(strict=True, default=1, ge=1, le=64, description="GPUs that share each layer.")
    pipeline: int = Field(strict=True, default=1, ge=1, le=64, description="Groups of layers, one after another.")


class Pool(Part):
    replicas: int = Field(
        strict=True, default=1, ge=0, le=10_000, description="Number of workers; with autoscaling the initial one."
    )
    parallelism: Parallelism = Field(default=Parallelism(), description="How one worker spreads over GPUs.")
    resources: Resources = Field(default_factory=dict, max_length=2, description="Requests and limits of a worker: cores, bytes.")
    node_selector: dict[str, LabelValue] = Field(
        default_factory=dict, max_length=64, description="Labels of the nodes that may hold a worker."
    )
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=64, description="Taints that a worker tolerates.")

    @field_validator("resources")
    @classmethod
    def _check_resources(cls, value: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        return rules.resources(value)


class Topology(Part):
    """Colocated: one pool `workers`. Disaggregated: pools prefill and decode. Auto: as given, else planned."""

    mode: Literal["auto", "colocated", "disaggregated"] = Field(
        default="auto", description="auto: a request goes where it is predicted to be answered soonest."
    )
    prefill: Pool | None = Field(default=None, description="Workers preferred for prompts.")
    decode: Pool | None = Field(default=None, description="Workers preferred for answers.")
    workers: Pool | None = Field(default=None, description="The one pool of colocated.")

    @model_validator(mode="after")
    def _pools_fit_the_mode(self) -> Self:
        split = self.prefill is not None or self.decode is not None
        if self.mode == "colocated" and split:
            raise ValueError("mode colocated has one pool, workers; prefill and decode belong to disaggregated")
        if self.mode == "disaggregated" and self.workers is not None:
            raise ValueError("mode disaggregated has the pools prefill and decode; workers belongs to colocated")
        if self.workers is not None and split:
            raise ValueError("give workers, or prefill and decode, not both")
        if split and (self.prefill is None or self.decode is None):
            raise ValueError(f"{'decode' if self.decode is None else 'prefill'} is missing beside the other pool")
        if self.mode == "colocated" and self.workers is None:
            raise ValueError("mode colocated needs the pool workers")
        if self.mode == "disaggregated" and not split:
            raise ValueError("mode disaggregated needs the pools prefill and decode")
        return self

    @property
    def pools(self) -> dict[str, Pool]:
        """The pools given, by name."""
        named = {"prefill": self.prefill, "decode": self.decode, "workers": self.workers}
        return {name: pool for name, pool in named.items() if pool is not None}


class SloClass(Part):
    name: str = Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", description="The name requests give.")
    ttft: Duration = Field(description="Time to the first token; above 0.")
    tpot: Duration = Field(description="Mean time per further token; above 0.")
    priority: int = Field(strict=True, default=0, ge=-1_000, le=1_000, description="Higher is served first.")


class Slo(Part):
    attainment: float = Field(default=0.99, gt=0, lt=1, description="Share of requests that are to meet their class.")
    default_class: str = Field(default="", max_length=63, description="Class of requests that name none; default: the first.")
    classes: tuple[SloClass, ...] = Field(default=(), max_length=16, description="Service classes.")

    @model_validator(mode="after")
    def _classes_are_named(self) -> Self:
        names = [one.name for one in self.classes]
        rules.unique(names, "classes")
        if self.default_class and self.default_class not in names:
            raise ValueError(f"defaultClass {self.default_class!r} is none of the classes: {', '.join(names) or 'none'}")
        return self

    @property
    def default(self) -> str:
        return self.default_class or (self.classes[0].name if self.classes else "")


class Tenant(Part):
    name: str = Field(min_length=1, max_length=128, description="The name that auth's Secret gives.")
    weight: float = Field(default=1, gt=0, le=1_000, description="Share of service under contention, relative to the others.")


class Fairness(Part):
    tenants: tuple[Tenant, ...] = Field(default=(), max_length=256, description="Tenants with a weight of their own.")
    default_weight: float = Field(default=1, gt=0, le=1_000, description="Weight of every other tenant.")

    @model_validator(mode="after")
    def _tenants_are_named_once(self) -> Self:
        rules.unique([tenant.name for tenant in self.tenants], "tenants")
        return self


class Auth(Part):
    api_keys_secret: Name = Field(description="A Secret of key -> tenant.")


class Tls(Part):
    mode: Annotated[Literal["off", "chart", "certManager"], BeforeValidator(word)] = Field(
        default="off", description="Who makes the certificates between all parts."
    )


class Range(Part):
    min: int = Field(strict=True, default=1, ge=0, le=10_000, description="Least number of workers.")
    max: int = Field(strict=True, ge=1, le=10_000, description="Greatest number of workers.")

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Autoscaling(Part):
    mode: Annotated[Literal["off", "recommend", "on"], BeforeValidator(word)] = Field(
        default="off", description="recommend: decisions are told and not carried out."
    )
    prefill: Range | None = Field(default=None, description="Bounds of the pool prefill.")
    decode: Range | None = Field(default=None, description="Bounds of the pool decode.")
    workers: Range | None = Field(default=None, description="Bounds of the pool workers.")
    scale_to_zero_after: Duration | None = Field(default=None, description="Time without a request; unset: never.")


class Rollout(Part):
    max_surge: int = Field(strict=True, default=1, ge=0, le=10_000, description="Workers of a pool above its size, in a rollout.")
    max_unavailable: int = Field(
        strict=True, default=0, ge=0, le=10_000, description="Workers of a pool that may be missing, in a rollout."
    )
    drain_timeout: Duration = Field(default=600.0, description="Running answers get this long to end or move.")

    @model_validator(mode="after")
    def _can_move(self) -> Self:
        if self.max_surge == 0 and self.max_unavailable == 0:
            raise ValueError("maxSurge and maxUnavailable are both 0, so that no rollout could proceed")
        return self


class RouterService(Part):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(default="ClusterIP", description="As of a Kubernetes Service.")


class Router(Part):
    replicas: int = Field(strict=True, default=1, ge=1, le=100, description="Number of routers.")
    service: RouterService = Field(default=RouterService(), description="The Service that clients call.")
    resources: Resources = Field(default_factory=dict, max_length=2, description="Requests and limits of a router: cores, bytes.")

    @field_validator("resources")
    @classmethod
    def _check_resources(cls, value: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        return rules.resources(value)


class Spec(Part):
    model: Model = Field(description="What is served.")
    engine: Engine = Field(default=Engine(), description="How engines run.")
    topology: Topology = Field(default=Topology(), description="Pools of workers.")
    slo: Slo = Field(default=Slo(), description="Service-level objectives.")
    fairness: Fairness = Field(default=Fairness(), description="Shares of tenants under contention.")
    auth: Auth | None = Field(default=None, description="API keys; unset: none is asked for.")
    tls: Tls = Field(default=Tls(), description="TLS between all parts.")
    autoscaling: Autoscaling = Field(default=Autoscaling(), description="Sizes from measured load.")
    rollout: Rollout = Field(default=Rollout(), description="How a new revision of the workers replaces the old.")
    router: Router = Field(default=Router(), description="What clients talk to.")
    paused: bool = Field(strict=True, default=False, description="The operator leaves the service as it is.")

    @model_validator(mode="after")
    def _autoscaled_pools_exist(self) -> Self:
        pools = self.topology.pools
        for name in ("prefill", "decode", "workers"):
            if pools and getattr(self.autoscaling, name) is not None and name not in pools:
                raise ValueError(f"autoscaling.{name} names a pool that topology does not have: {', '.join(pools)}")
        return self


class Metadata(BaseModel):
    """What Penstock reads; the API server's other metadata is let through."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    # A revision's RayService is NAME-HASH, which KubeRay bounds at 47 and wants to begin with a letter.
    name: str = Field(max_length=rules.NAME_MAX, pattern=rules.NAME_PATTERN)
    namespace: Name | None = None
    generation: int = 0
    uid: str = ""


class LLMService(Part):
    api_version: Literal["serving.penstock.dev/v1alpha1"]
    kind: Literal["LLMService"]
    metadata: Metadata
    spec: Spec
    status: Status | None = None
