"""What this version cannot do with a valid LLMService, by name.

Promise: a setting is honoured, refused here with its field, or listed by `without_effect`; none is
dropped in silence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from penstock_operator.api.llmservice import Spec

Where = Literal["local", "cluster"]
_MOST_GPUS = 16  # of one pod


@dataclass(frozen=True, slots=True)
class Refusal:
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def unsupported(spec: Spec, where: Where = "local") -> list[Refusal]:
    """Settings that would change behaviour and are not built; `up` and the operator refuse a manifest that has any."""
    here = _local(spec) if where == "local" else _cluster(spec)
    return [Refusal(f"spec.{field}", message) for field, message in [*_everywhere(spec), *here]]


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


def _everywhere(spec: Spec) -> Iterator[tuple[str, str]]:
    model, pools = spec.model, spec.topology.pools
    if model.adapters:
        yield "model.adapters", "adapters are not built yet; remove them"
    if not pools:
        yield "topology.mode", "auto without pools needs the planner, which is not built yet; give workers, or prefill and decode"
    for name, pool in pools.items():
        if pool.replicas == 0:
            yield f"topology.{name}.replicas", "0 is not built yet (scale to zero); give at least 1"
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


def _local(spec: Spec) -> Iterator[tuple[str, str]]:
    if spec.model.source.startswith("pvc://"):
        yield "model.source", "pvc:// is Kubernetes'; on one machine give hf://, s3://, file:// or penstock://tiny"
    if spec.model.secret_ref is not None:
        told = "set HF_TOKEN, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in the environment"
        yield "model.secretRef", f"Secrets are Kubernetes'; locally {told}"
    if spec.engine.device == "gpu":
        yield "engine.device", "gpu is not built for `penstock up` yet; give cpu"
    for position, variable in enumerate(spec.engine.env):
        if variable.value_from is not None:
            yield f"engine.env[{position}].valueFrom", "is Kubernetes'; locally give value"
    for name, pool in spec.topology.pools.items():
        for axis in ("tensor", "pipeline"):
            degree = getattr(pool.parallelism, axis)
            if degree > 1:
                yield f"topology.{name}.parallelism.{axis}", f"{degree} needs GPUs; on one machine's CPU give 1"
    if spec.router.replicas > 1:
        yield "router.replicas", f"{spec.router.replicas} is not built for one machine; give 1"
    if spec.paused:
        yield "paused", "true asks for nothing to be started; give false"


def _cluster(spec: Spec) -> Iterator[tuple[str, str]]:
    scheme = spec.model.source.partition("://")[0]
    if spec.model.secret_ref is not None and scheme not in ("hf", "s3"):
        yield "model.secretRef", f"{scheme}:// needs no credentials, so that nothing would read the Secret; remove it"
    for name, pool in spec.topology.pools.items():
        tensor, pipeline = pool.parallelism.tensor, pool.parallelism.pipeline
        if tensor * pipeline > 1 and spec.engine.device == "cpu":
            yield f"topology.{name}.parallelism", "more than one device needs GPUs; with engine.device cpu give 1"
        if tensor * pipeline > _MOST_GPUS:
            told = f"{tensor * pipeline} GPUs of one worker are more than one pod holds; several pods are not built yet"
            yield f"topology.{name}.parallelism", f"{told}; give at most {_MOST_GPUS}"
