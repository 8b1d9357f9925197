"""Manifests that must be refused, with the field that the refusal names, for every place that checks them."""

from copy import deepcopy
from typing import Any

import yaml

from penstock_operator.api import default_text

# (field to set, value, field the refusal names). `...` removes the field.
REFUSED: list[tuple[str, Any, str]] = [
    ("spec.model.source", "ftp://x", "spec.model.source"),
    ("spec.model.source", "hf://", "spec.model.source"),
    ("spec.model.source", "hf:///", "spec.model.source"),
    ("spec.model.source", "hf://a b", "spec.model.source"),
    ("spec.model.source", "penstock://huge", "spec.model.source"),
    ("spec.model.source", "hf://Qwen3-8B", "spec.model.source"),
    ("spec.model.source", "hf://Qwen/Qwen3-8B/more", "spec.model.source"),
    ("spec.model.source", "hf://Qwen/Qwen3-8B@", "spec.model.source"),
    ("spec.model.source", "file://models/here", "spec.model.source"),
    ("spec.model.source", "pvc://Not_A_Claim/model", "spec.model.source"),
    ("spec.model.source", "pvc://claim/../etc", "spec.model.source"),
    ("spec.model.source", "pvc://claim/..", "spec.model.source"),
    ("spec.model.source", "s3:///model", "spec.model.source"),
    ("spec.model.source", ..., "spec.model.source"),
    ("spec.model.name", "two words", "spec.model.name"),
    ("spec.model.secretRef", {"name": "Not_A_Name"}, "spec.model.secretRef.name"),
    ("spec.model.adapters", [{"name": "a", "source": "penstock://tiny"}], "spec.model.adapters[0].source"),
    ("spec.engine.device", "tpu", "spec.engine.device"),
    ("spec.engine.image", "", "spec.engine.image"),
    ("spec.engine.shm", "8GB", "spec.engine.shm"),
    ("spec.engine.env", [{"name": "1A", "value": "b"}], "spec.engine.env[0].name"),
    ("spec.engine.env", [{"name": "A", "value": "b", "valueFrom": {}}], "spec.engine.env[0]"),
    ("spec.topology.mode", "both", "spec.topology.mode"),
    ("spec.topology.mode", "colocated", "spec.topology"),
    ("spec.topology.decode", ..., "spec.topology"),
    ("spec.topology.prefill", ..., "spec.topology"),
    ("spec.topology.workers", {}, "spec.topology"),
    ("spec.topology", {"mode": "disaggregated"}, "spec.topology"),
    ("spec.topology", {"mode": "colocated"}, "spec.topology"),
    ("spec.topology", {"mode": "auto", "prefill": {}}, "spec.topology"),
    ("spec.topology.prefill.replicas", -1, "spec.topology.prefill.replicas"),
    ("spec.topology.prefill.replicas", 10_001, "spec.topology.prefill.replicas"),
    ("spec.topology.prefill.replicas", "2", "spec.topology.prefill.replicas"),
    ("spec.topology.prefill.parallelism", {"tensor": 0}, "spec.topology.prefill.parallelism.tensor"),
    ("spec.topology.prefill.resources", {"limit": {}}, "spec.topology.prefill.resources"),
    ("spec.topology.prefill.resources", {"limits": {"cpu": "much"}}, "spec.topology.prefill.resources"),
    ("spec.topology.prefill.resources", {"limits": {"nvidia.com/gpu": 1}}, "spec.topology.prefill.resources"),
    ("spec.topology.prefill.tolerations", [{"operator": "Is"}], "spec.topology.prefill.tolerations[0].operator"),
    ("spec.slo.attainment", 1, "spec.slo.attainment"),
    ("spec.slo.attainment", 0, "spec.slo.attainment"),
    ("spec.slo.defaultClass", "gold", "spec.slo"),
    ("spec.slo.classes", [{"name": "interactive", "ttft": "0s", "tpot": "1s"}], "spec.slo.classes[0].ttft"),
    ("spec.slo.classes", [{"name": "interactive", "ttft": "fast", "tpot": "1s"}], "spec.slo.classes[0].ttft"),
    ("spec.slo.classes", [{"name": "interactive", "ttft": "1s"}], "spec.slo.classes[0].tpot"),
    (
        "spec.slo.classes",
        [{"name": "interactive", "ttft": "1s", "tpot": "1s"}, {"name": "interactive", "ttft": "2s", "tpot": "1s"}],
        "spec.slo",
    ),
    ("spec.fairness", {"tenants": [{"name": "a", "weight": 0}]}, "spec.fairness.tenants[0].weight"),
    ("spec.fairness", {"tenants": [{"name": "a"}, {"name": "a"}]}, "spec.fairness"),
    ("spec.auth", {"apiKeysSecret": "No"}, "spec.auth.apiKeysSecret"),
    ("spec.tls", {"mode": "on"}, "spec.tls.mode"),
    ("spec.autoscaling", {"mode": "maybe"}, "spec.autoscaling.mode"),
    ("spec.autoscaling", {"prefill": {"min": 2, "max": 1}}, "spec.autoscaling.prefill"),
    ("spec.autoscaling", {"prefill": {"min": 1}}, "spec.autoscaling.prefill.max"),
    ("spec.autoscaling", {"workers": {"max": 2}}, "spec"),
    ("spec.autoscaling", {"scaleToZeroAfter": "0m"}, "spec.autoscaling.scaleToZeroAfter"),
    ("spec.rollout", {"maxSurge": 0, "maxUnavailable": 0}, "spec.rollout"),
    ("spec.rollout", {"maxSurge": -1}, "spec.rollout.maxSurge"),
    ("spec.rollout", {"drainTimeout": "0s"}, "spec.rollout.drainTimeout"),
    ("spec.rollout", {"drainTimeout": 30}, "spec.rollout.drainTimeout"),
    ("spec.router", {"replicas": 0}, "spec.router.replicas"),
    ("spec.router", {"service": {"type": "ExternalName"}}, "spec.router.service.type"),
    ("spec.router", {"resources": {"request": {}}}, "spec.router.resources"),
    ("spec.paused", "yes", "spec.paused"),
    ("spec", ..., "spec"),
]

ACCEPTED: list[tuple[str, Any]] = [
    ("spec.model.source", "hf://Qwen/Qwen3-8B"),
    ("spec.model.source", "hf://Qwen/Qwen3-8B@refs/pr/1"),
    ("spec.model.source", "s3://models/team/chat"),
    ("spec.model.source", "pvc://claim/a..b/chat"),
    ("spec.model.source", "file:///models/chat"),
    ("spec.model.source", "pvc://models/qwen"),
    ("spec.engine.args", {"max-model-len": 512}),
    ("spec.engine.shm", 8),
    ("spec.topology", {"mode": "colocated", "workers": {"replicas": 3}}),
    ("spec.topology", {"mode": "auto", "prefill": {}, "decode": {}}),
    ("spec.topology", {}),
    ("spec.topology.prefill.resources", {"limits": {"cpu": "500m", "memory": "8Gi"}, "requests": {"cpu": 1}}),
    ("spec.topology.prefill.tolerations", [{"key": "gpu", "operator": "Exists"}]),
    ("spec.autoscaling", {"mode": True, "prefill": {"max": 4}}),
    ("spec.autoscaling", {"mode": "on", "decode": {"min": 0, "max": 1}, "scaleToZeroAfter": "1h30m"}),
    ("spec.tls", {"mode": False}),
    ("spec.rollout", {"maxSurge": 0, "maxUnavailable": 1}),
    ("spec.slo", {}),
]

# (old model, new model): what a service may not become.
REFUSED_CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"source": "hf://a/b"}, {"source": "hf://a/c"}),
    ({"source": "hf://a/b", "name": "one"}, {"source": "hf://a/b", "name": "two"}),
    ({"source": "hf://a/b", "name": "one"}, {"source": "hf://a/b"}),
]
ACCEPTED_CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"source": "hf://a/b"}, {"source": "hf://c/b"}),
    ({"source": "hf://a/b"}, {"source": "hf://a/b/", "name": "b"}),
    ({"source": "hf://a/b", "name": "one"}, {"source": "hf://a/c", "name": "one"}),
]


def manifest(*edits: tuple[str, Any], name: str = "tiny") -> dict[str, Any]:
    """The built-in service with fields set."""
    document: dict[str, Any] = deepcopy(yaml.safe_load(default_text()))
    document["metadata"]["name"] = name
    for path, value in edits:
        *parents, leaf = path.split(".")
        part = document
        for key in parents:
            part = part.setdefault(key, {})
        if value is ...:
            del part[leaf]
        else:
            part[leaf] = deepcopy(value)
    return document
