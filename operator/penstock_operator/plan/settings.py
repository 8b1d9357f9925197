"""What the operator itself is told: images and defaults of everything it makes.

Promise: the one definition; the chart's values schema holds the same fields, and the operator refuses a file with others.
"""

import json
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from penstock_operator.api.scalars import Name, Quantity

PullPolicy = Literal["Always", "IfNotPresent", "Never"]


class Part(BaseModel):
    """Frozen, camelCase in files, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Images(Part):
    """Names without a registry are resolved by the nodes; `engine.image` of a service goes before."""

    router: str = Field(default="penstock/operator-router:0.1.0", min_length=1, description="Image of routers.")
    gpu: str = Field(default="penstock/worker-gpu:0.1.0", min_length=1, description="Image of engines with GPUs.")
    cpu: str = Field(default="penstock/worker-cpu:0.1.0", min_length=1, description="Image of engines without GPUs.")
    pull_policy: PullPolicy = Field(default="IfNotPresent", description="When nodes pull these images.")
    pull_secrets: tuple[Name, ...] = Field(default=(), max_length=16, description="Secrets with the registry's credentials.")


class GcsStorage(Part):
    """Where a Ray head keeps its state, so that its loss costs no stream."""

    storage_class: str = Field(default="", max_length=253, description="StorageClass of the heads' volumes; empty: the default.")
    size: Quantity = Field(default="1Gi", description="Size of a head's volume, in bytes.")
    enabled: bool = Field(default=True, description="False keeps heads in memory: streams break when a head is lost.")


class Prometheus(Part):
    """Where the routers' figures are read."""

    url: str = Field(
        default="",
        max_length=512,
        pattern=r"^(https?://[^\s]+)?$",
        description="Base URL of a Prometheus that scrapes the routers; empty: the condition SLOMet stays Unknown.",
    )


class OperatorSettings(Part):
    images: Images = Field(default=Images(), description="Images of what the operator makes.")
    gcs_storage: GcsStorage = Field(default=GcsStorage(), description="Volumes of Ray heads.")
    ray_version: str = Field(
        default="2.60.0", pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$", description="Ray in the engine images, as KubeRay is told."
    )
    head_resources: dict[str, dict[str, Quantity]] = Field(
        default={"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        description="Requests and limits of Ray heads.",
    )
    router_resources: dict[str, dict[str, Quantity]] = Field(
        default={"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
        description="Requests and limits of routers whose service gives none.",
    )
    progress_deadline_s: float = Field(
        default=1800.0, gt=0, le=86_400, description="Seconds a rollout may stand still before it counts as failed."
    )
    idle_timeout_s: int = Field(
        default=60, ge=1, le=86_400, description="Seconds after which Ray's autoscaler removes a pod without a worker."
    )
    kuberay_labels: dict[str, str] = Field(
        default={"app.kubernetes.io/component": "kuberay-operator"},
        max_length=8,
        description="Labels of KubeRay's operator pods, which reach the heads through the NetworkPolicy.",
    )
    run_as_user: int = Field(
        default=10001, ge=0, le=2**31 - 1, description="User of every container; 0 leaves it to the image and the cluster."
    )
    prometheus: Prometheus = Field(default=Prometheus(), description="Where attainment is read.")
    fake_engine: bool = Field(default=False, description="Serve the deterministic fake engine, for tests of clusters.")


def load_settings(path: Path | None) -> OperatorSettings:
    """From YAML or JSON; without a file the defaults. Raises ValueError with the file's name."""
    if path is None:
        return OperatorSettings()
    try:
        text = path.read_text()
        return OperatorSettings.model_validate(json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text) or {})
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
