"""The CustomResourceDefinition says what the models say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crd_cases
import pytest
import yaml

from penstock_operator.api import LLMService, check, crd, judge, llmservice
from penstock_operator.api.cel import LIST_KEYS, RULES

ROOT = Path(__file__).resolve().parents[2]
SCHEMA: dict[str, Any] = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for key, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


def test_the_chart_holds_the_definition_as_it_is_generated() -> None:
    assert (ROOT / "deploy/helm/penstock/files/llmservices.yaml").read_text() == crd.text(), "make gen"


def test_the_definition_is_plain_yaml_without_anchors() -> None:
    assert yaml.safe_load(crd.text()) == crd.definition() and "&id" not in crd.text()


def test_names_and_subresources_are_those_users_rely_on() -> None:
    spec = crd.definition()["spec"]
    version = spec["versions"][0]
    assert (spec["group"], version["name"], spec["names"]["kind"]) == ("serving.penstock.dev", "v1alpha1", "LLMService")
    assert spec["names"]["shortNames"] == ["llm"] and spec["scope"] == "Namespaced"
    assert version["subresources"] == {"status": {}}
    narrow = [one["name"] for one in version["additionalPrinterColumns"] if not one.get("priority")]
    assert narrow == ["Model", "Mode", "Prefill", "Decode", "Phase", "SLO", "Age"]


def test_every_column_is_a_field() -> None:
    fields = {path for path, _ in nodes(SCHEMA)} | {".metadata.creationTimestamp"}
    columns = crd.definition()["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [one["jsonPath"] for one in columns if one["jsonPath"] not in fields] == []


def test_every_part_of_the_schema_is_structural() -> None:
    allowed = {
        "type", "description", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
        "exclusiveMaximum", "maxItems", "maxProperties", "required", "properties", "items", "additionalProperties", "default",
        "anyOf", "x-kubernetes-validations", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
    }  # fmt: skip
    for path, node in nodes(SCHEMA):
        assert set(node) <= allowed, path
        assert "type" in node or node.get("x-kubernetes-int-or-string") or node.get("x-kubernetes-preserve-unknown-fields"), path
        assert not ("properties" in node and "additionalProperties" in node), path
        for key in ("exclusiveMinimum", "exclusiveMaximum"):
            assert node.get(key) in (None, True), path


def test_every_field_is_described() -> None:
    bare = [
        p
        for p, node in nodes(SCHEMA)
        if not p.endswith("[]") and p not in ("", ".metadata", ".spec", ".status") and "description" not in node
    ]
    assert bare == []


def test_every_number_and_text_of_the_spec_is_bounded() -> None:
    loose = [
        path
        for path, node in nodes(SCHEMA["properties"]["spec"])
        if (node.get("type") == "string" and not ({"maxLength", "enum"} & set(node)))
        or (node.get("type") == "array" and "maxItems" not in node)
        or (node.get("type") in ("integer", "number") and not {"minimum", "maximum"} <= set(node))
    ]
    assert loose == [".topology.prefill.tolerations[].tolerationSeconds", ".topology.decode.tolerations[].tolerationSeconds",
                     ".topology.workers.tolerations[].tolerationSeconds"]  # fmt: skip


def test_every_list_says_how_it_is_merged_and_its_keys_are_required() -> None:
    lists = {path: node for path, node in nodes(SCHEMA) if node.get("type") == "array"}
    assert all(node["x-kubernetes-list-type"] in ("map", "atomic") for node in lists.values())
    keyed = {path for path, node in lists.items() if node["x-kubernetes-list-type"] == "map"}
    assert keyed == {
        ".spec.model.adapters", ".spec.engine.env", ".spec.slo.classes", ".spec.fairness.tenants",
        ".status.pools", ".status.slo", ".status.conditions",
    }  # fmt: skip
    assert len(LIST_KEYS) == len(keyed)
    for path in keyed:
        (key,) = lists[path]["x-kubernetes-list-map-keys"]
        assert key in lists[path]["items"]["required"], path


def test_defaults_are_those_of_the_models() -> None:
    found = {path: node["default"] for path, node in nodes(SCHEMA["properties"]["spec"]) if "default" in node}
    service, _ = judge(crd_cases.manifest(("spec", {"model": {"source": "penstock://tiny"}})))
    assert service is not None
    dumped = service.spec.model_dump(mode="json", by_alias=True)
    for path, default in found.items():
        value: Any = dumped
        for key in path.strip(".").split("."):
            value = value[key] if isinstance(value, dict) and key in value else ...
        if value is not ... and not isinstance(default, dict):
            assert value == default, path
    assert found[".rollout.drainTimeout"] == "10m" and found[".engine.device"] == "gpu" and found[".topology"] == {"mode": "auto"}


def test_a_status_has_no_defaults() -> None:
    assert [path for path, node in nodes(SCHEMA["properties"]["status"]) if "default" in node] == []


def test_every_model_with_a_rule_between_fields_has_it_in_cel() -> None:
    source = Path(llmservice.__file__).read_text()
    owner = ""
    ruled = set()
    for line in source.splitlines():
        owner = found[1] if (found := re.match(r"class (\w+)\(", line)) else owner
        if "@model_validator" in line:
            ruled.add(owner)
    # Tenants are named once by the list's key.
    assert ruled - {"Fairness"} == {model for model, field in RULES if field is None} - {"Model", "LLMService"}


def test_words_that_yaml_takes_for_booleans_are_accepted_as_booleans() -> None:
    spec = SCHEMA["properties"]["spec"]["properties"]
    assert spec["autoscaling"]["properties"]["mode"]["enum"] == ["off", "recommend", "on", True, False]
    assert spec["tls"]["properties"]["mode"]["enum"] == ["off", "chart", "certManager", False]


@pytest.mark.parametrize(("path", "value", "field"), crd_cases.REFUSED)
def test_what_is_refused_is_named(path: str, value: Any, field: str) -> None:
    faults = check(crd_cases.manifest((path, value)))
    assert faults and any(fault.field.startswith(field) for fault in faults), faults
    assert all(fault.message for fault in faults)


@pytest.mark.parametrize(("path", "value"), crd_cases.ACCEPTED)
def test_what_is_right_has_no_fault(path: str, value: Any) -> None:
    assert check(crd_cases.manifest((path, value))) == []


@pytest.mark.parametrize("name", ["1st", "a" * 37, "Upper", "dash-"])
def test_a_name_that_children_could_not_carry_is_refused(name: str) -> None:
    (fault,) = check(crd_cases.manifest(name=name))
    assert fault.field == "metadata.name"


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[Any]:
    was, _ = judge(crd_cases.manifest(("spec.model", old)))
    assert isinstance(was, LLMService)
    return check(crd_cases.manifest(("spec.model", new)), was)


@pytest.mark.parametrize(("old", "new"), crd_cases.REFUSED_CHANGES)
def test_the_served_name_may_not_change(old: dict[str, Any], new: dict[str, Any]) -> None:
    (fault,) = changed(old, new)
    assert fault.field == "spec.model.name"


@pytest.mark.parametrize(("old", "new"), crd_cases.ACCEPTED_CHANGES)
def test_a_source_may_change_under_its_served_name(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert changed(old, new) == []


def test_faults_are_all_told_and_each_is_one_line() -> None:
    faults = check(crd_cases.manifest(("spec.router", {"replicas": 0}), ("spec.paused", "yes"), ("spec.extra", {})))
    assert sorted(fault.field for fault in faults) == ["spec.extra", "spec.paused", "spec.router.replicas"]
    assert all("\n" not in str(fault) for fault in faults) and json.dumps([str(fault) for fault in faults])
