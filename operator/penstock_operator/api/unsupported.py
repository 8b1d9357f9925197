"""What this version cannot do with a valid LLMService, by name.

Promise: a setting is honoured, refused here with its field, or listed by `without_effect`; none is
dropped in silence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from penstock_operator.api.llmservice import Pool, Spec

Where = Literal["local"]


@dataclass(frozen=True, slots=True)
class Refusal:
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def unsupported(spec: Spec, where: Where = "local") -> list[Refusal]:
    """Settings that would change behaviour and are not built; `up` refuses a manifest that has any."""
    found = [*_model(spec), *_engine(spec), *_topology(spec), *_service(spec)]
    return [Refusal(f"spec.{field}", message) for field, message in found]


def without_effect(spec: Spec, where: Where = "local") -> list[Refusal]:
    """Settings that place containers and mean nothing to processes on one machine."""
    engine, router = spec.engine, spec.router
    found = [
        ("engine.image", engine.image is not None),
        ("engine.shm", engine.shm is not None),
        ("model.cache", spec.model.cache is not None),
        ("router.service", "service" in router.model_fields_set),
        ("router.resources", bool(router.resources)),
        ("rollout.maxSurge", "max_surge" in spec.rollout.model_fields_set),
        ("rollout.maxUnavailable", "max_unavailable" in spec.rollout.model_fields_set),
    ]
    for name, pool in spec.topology.pools.items():
        found.append((f"topology.{name}.resources", bool(pool.resources)))
        found.append((f"topology.{name}.nodeSelector", bool(pool.node_selector)))
        found.append((f"topology.{name}.tolerations", bool(pool.tolerations)))
    return [Refusal(f"spec.{field}", "has no effect on one machine") for field, given in found if given]


def _model(spec: Spec) -> Iterator[tuple[str, str]]:
    model = spec.model
    scheme = model.source.partition("://")[0]
    if scheme in ("s3", "pvc"):
        accepted = "hf://, file:// or penstock://tiny"
        yield "model.source", f"{scheme}:// is not built yet; give {accepted}"
    if model.adapters:
        yield "model.adapters", "adapters are not built yet; remove them"
    if model.secret_ref is not None:
        yield "model.secretRef", "Secrets are Kubernetes'; locally set HF_TOKEN in the environment"


def _engine(spec: Spec) -> Iterator[tuple[str, str]]:
    engine = spec.engine
    if engine.device == "gpu":
        yield "engine.device", "gpu is not built for `penstock up` yet; give cpu"
    for position, variable in enumerate(engine.env):
        if variable.value_from is not None:
            yield f"engine.env[{position}].valueFrom", "is Kubernetes'; locally give value"


def _topology(spec: Spec) -> Iterator[tuple[str, str]]:
    pools = spec.topology.pools
    if not pools:
        yield "topology.mode", "auto without pools needs the planner, which is not built yet; give workers, or prefill and decode"
    for name, pool in pools.items():
        yield from _pool(name, pool)


def _pool(name: str, pool: Pool) -> Iterator[tuple[str, str]]:
    if pool.replicas == 0:
        yield f"topology.{name}.replicas", "0 is not built yet (scale to zero); give at least 1"
    for axis in ("tensor", "pipeline"):
        degree = getattr(pool.parallelism, axis)
        if degree > 1:
            yield f"topology.{name}.parallelism.{axis}", f"{degree} needs GPUs; on one machine's CPU give 1"


def _service(spec: Spec) -> Iterator[tuple[str, str]]:
    if spec.fairness.tenants:
        yield "fairness.tenants", "fairness between tenants is not built yet; remove them"
    if spec.auth is not None:
        yield "auth", "API keys are not built yet; remove it"
    if spec.tls.mode != "off":
        yield "tls.mode", f"{spec.tls.mode} is not built yet; give off"
    scaling = spec.autoscaling
    if scaling.mode != "off":
        yield "autoscaling.mode", f"{scaling.mode} is not built yet; give off"
    if scaling.scale_to_zero_after is not None:
        yield "autoscaling.scaleToZeroAfter", "is not built yet; remove it"
    if spec.router.replicas > 1:
        yield "router.replicas", f"{spec.router.replicas} is not built for one machine; give 1"
    if spec.paused:
        yield "paused", "true asks for nothing to be started; give false"
