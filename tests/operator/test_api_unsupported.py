"""What is not built is refused by name; what has no meaning on one machine is told."""

from typing import Any

import pytest
import yaml

from penstock_operator.api import default_text, load, unsupported, without_effect


def spec_with(**changes: Any) -> Any:
    document = yaml.safe_load(default_text())
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        part = document["spec"]
        for key in parents:
            part = part.setdefault(key, {})
        part[leaf] = value
    return load(yaml.safe_dump(document)).spec


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model__source": "pvc://c/m"}, "spec.model.source"),
        ({"model__adapters": [{"name": "a", "source": "hf://o/a"}]}, "spec.model.adapters"),
        ({"model__secretRef": {"name": "s"}}, "spec.model.secretRef"),
        ({"engine__device": "gpu"}, "spec.engine.device"),
        ({"engine__env": [{"name": "A", "valueFrom": {}}]}, "spec.engine.env[0].valueFrom"),
        ({"topology": {"mode": "auto"}}, "spec.topology.mode"),
        ({"topology__prefill__replicas": 0}, "spec.topology.prefill.replicas"),
        ({"topology__prefill__parallelism": {"tensor": 2}}, "spec.topology.prefill.parallelism.tensor"),
        ({"topology__decode__parallelism": {"pipeline": 2}}, "spec.topology.decode.parallelism.pipeline"),
        ({"fairness": {"tenants": [{"name": "a"}]}}, "spec.fairness.tenants"),
        ({"auth": {"apiKeysSecret": "s"}}, "spec.auth"),
        ({"tls": {"mode": "certManager"}}, "spec.tls.mode"),
        ({"autoscaling": {"mode": "recommend"}}, "spec.autoscaling.mode"),
        ({"autoscaling": {"scaleToZeroAfter": "5m"}}, "spec.autoscaling.scaleToZeroAfter"),
        ({"router__replicas": 2}, "spec.router.replicas"),
        ({"paused": True}, "spec.paused"),
    ],
)
def test_a_setting_that_is_not_built_is_refused_by_its_name(changes: dict[str, Any], field: str) -> None:
    (refusal,) = unsupported(spec_with(**changes))
    assert refusal.field == field and refusal.message and str(refusal).startswith(f"{field}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"model__source": "hf://o/m"},
        {"model__source": "s3://b/m"},
        {"model__source": "file:///models/m"},
        {"engine__env": [{"name": "A", "value": "b"}]},
        {"topology": {"mode": "auto", "workers": {"replicas": 2}}},
        {"topology": {"mode": "colocated", "workers": {}}},
        {"tls": {"mode": "off"}, "autoscaling": {"mode": "off"}},
    ],
)
def test_what_is_built_is_not_refused(changes: dict[str, Any]) -> None:
    assert unsupported(spec_with(**changes)) == []


def test_a_secret_that_nothing_would_read_is_refused_on_a_cluster() -> None:
    (refusal,) = unsupported(spec_with(model__source="pvc://c/m", model__secretRef={"name": "s"}), "cluster")
    assert refusal.field == "spec.model.secretRef" and "pvc:// needs no credentials" in refusal.message


@pytest.mark.parametrize("source", ["hf://o/m", "s3://b/m"])
def test_every_source_with_credentials_is_built_on_a_cluster(source: str) -> None:
    assert unsupported(spec_with(model__source=source, model__secretRef={"name": "s"}), "cluster") == []


def test_settings_for_containers_are_told_to_have_no_effect() -> None:
    spec = spec_with(engine__image="i", engine__shm="1Gi", model__cache={"pvc": "c"}, topology__decode__nodeSelector={"a": "b"})
    told = [one.field for one in without_effect(spec)]
    assert told == ["spec.engine.image", "spec.engine.shm", "spec.model.cache", "spec.topology.decode.nodeSelector"]
    assert unsupported(spec) == []
