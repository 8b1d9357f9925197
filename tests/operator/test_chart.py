"""The Helm chart: generated parts are current, and what it renders is what the operator needs and no more."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kube.build import find
from pydantic import ValidationError

from penstock_operator.api import crd
from penstock_operator.plan import OperatorSettings, chart, dashboards
from penstock_operator.plan.permissions import CLUSTER, NAMESPACED, OWN, Rule

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/penstock"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())


@pytest.mark.parametrize("path", chart.files())
def test_generated_files_are_current(path: str) -> None:
    assert (CHART / path).read_text() == chart.files()[path], "make gen"


def test_the_values_are_the_models_defaults_and_pass_the_schema() -> None:
    jsonschema.validate(VALUES, SCHEMA)
    assert chart.ChartValues.model_validate(VALUES) == chart.ChartValues()
    assert OperatorSettings.model_validate(VALUES["settings"]) == OperatorSettings()


def test_every_value_is_described() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()[1:]
    assert all(lines[i - 1].lstrip().startswith("# ") for i, line in enumerate(lines) if not line.lstrip().startswith("#"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("operator.replicas", 0),
        ("operator.image.pullPolicy", "Sometimes"),
        ("scope.namespaces", ["Not A Name"]),
        ("settings.images.registry", "x"),
        ("settings.progressDeadlineS", 0),
        ("monitoring.interval", "often"),
        ("surprise", True),
    ],
)
def test_a_wrong_value_is_refused_by_the_schema_and_by_the_model(path: str, value: Any) -> None:
    wrong = json.loads(json.dumps(VALUES))
    *parents, leaf = path.split(".")
    part = wrong
    for key in parents:
        part = part[key]
    part[leaf] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)
    with pytest.raises(ValidationError):
        chart.ChartValues.model_validate(wrong)


def test_no_image_and_no_chart_names_a_registry() -> None:
    texts = [path.read_text() for path in CHART.rglob("*.yaml")]
    images = re.findall(r"(?m)^\s*(?:image|router|gpu|cpu|name): (\S+/\S+)$", "\n".join(texts))
    assert images and not any("." in image.split("/")[0] for image in images)
    assert "repository:" not in (CHART / "Chart.yaml").read_text()


def test_the_subchart_is_there_so_that_nothing_is_fetched() -> None:
    (wanted,) = yaml.safe_load((CHART / "Chart.yaml").read_text())["dependencies"]
    there = yaml.safe_load((CHART / "charts/kuberay/Chart.yaml").read_text())
    assert (wanted["name"], wanted["version"], wanted["condition"]) == (there["name"], there["version"], "kuberay.enabled")
    kinds = {json.loads(path.read_text())["spec"]["names"]["kind"] for path in (CHART / "charts/kuberay/crds").iterdir()}
    assert kinds == {"RayCluster", "RayService", "RayJob"}


helm = find("helm")
needs_helm = [pytest.mark.slow, pytest.mark.skipif(helm is None, reason="no helm: `python -m kube.build helm` in e2e/ makes it")]


def template(*words: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(kind, namespace, name) -> object."""
    done = subprocess.run(
        [str(helm), "template", "rel", str(CHART), "-n", "penstock-system", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [one for one in yaml.safe_load_all(done.stdout) if one]
    named = {(one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]): one for one in found}
    assert len(named) == len(found)
    return named


def of_kind(found: dict[tuple[str, str, str], dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [body for (one, _, _), body in found.items() if one == kind]


def granted(roles: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def asked(*tables: tuple[Rule, ...]) -> set[tuple[str, str, str]]:
    return {(rule.group, one, verb) for table in tables for rule in table for one in rule.resources for verb in rule.verbs}


class TestWithHelm:
    pytestmark = needs_helm

    def test_lint_has_nothing_to_say(self) -> None:
        done = subprocess.run([str(helm), "lint", "--strict", str(CHART)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_by_default_the_operator_may_do_what_it_does_in_its_namespace_and_no_more(self) -> None:
        found = template()
        assert granted(of_kind(found, "Role")) == asked(NAMESPACED, OWN)
        assert granted(of_kind(found, "ClusterRole")) == asked(CLUSTER)
        assert {namespace for kind, namespace, _ in found if kind == "RoleBinding"} == {"penstock-system"}

    def test_it_may_be_given_namespaces_or_the_whole_cluster(self) -> None:
        several = template("--set", "scope.namespaces={a,b}", "--set", "scope.storageClasses=false")
        assert sorted(space for kind, space, name in several if kind == "Role" and not name.endswith("leader")) == ["a", "b"]
        assert of_kind(several, "ClusterRole") == []
        (operator,) = of_kind(several, "Deployment")
        assert operator["spec"]["template"]["spec"]["containers"][0]["command"][-2:] == ["--namespace=a", "--namespace=b"]
        wide = template("--set", "scope.clusterWide=true")
        assert granted(of_kind(wide, "ClusterRole")) == asked(NAMESPACED, CLUSTER)
        assert granted(of_kind(wide, "Role")) == asked(OWN)
        assert "--namespace" not in json.dumps(of_kind(wide, "Deployment"))

    def test_every_binding_is_of_the_operator_s_account_to_a_role_that_exists(self) -> None:
        found = template("--set", "scope.clusterWide=true")
        for kind in ("RoleBinding", "ClusterRoleBinding"):
            for binding in of_kind(found, kind):
                role = binding["roleRef"]
                assert (role["kind"], binding["metadata"].get("namespace", ""), role["name"]) in found
                assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "rel-penstock", "namespace": "penstock-system"}]

    def test_the_operator_s_pods_meet_the_restricted_standard(self) -> None:
        found = template("--set", "kuberay.enabled=true")
        specs = [one["spec"]["template"]["spec"] for one in of_kind(found, "Deployment")]
        specs += [pod["spec"] for pod in of_kind(found, "Pod")]
        assert len(specs) == 3
        for spec in specs:
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in spec["containers"]:
                security = container["securityContext"]
                assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
                assert security["capabilities"] == {"drop": ["ALL"]} and container["resources"]["requests"]

    def test_the_operator_reads_the_settings_that_were_given(self) -> None:
        found = template("--set", "settings.images.router=here/router:2", "--set", "settings.runAsUser=0")
        (config,) = of_kind(found, "ConfigMap")
        settings = OperatorSettings.model_validate(yaml.safe_load(config["data"]["operator.yaml"]))
        assert settings.images.router == "here/router:2"
        (operator,) = of_kind(found, "Deployment")
        assert operator["spec"]["replicas"] == 2 and "runAsUser" not in operator["spec"]["template"]["spec"]["securityContext"]
        other = of_kind(template(), "Deployment")[0]["spec"]["template"]["metadata"]["annotations"]
        assert other != operator["spec"]["template"]["metadata"]["annotations"]

    def test_the_definition_is_the_generated_one_and_stays_when_the_chart_goes(self) -> None:
        (found,) = of_kind(template(), "CustomResourceDefinition")
        assert found["spec"] == crd.definition()["spec"]
        assert found["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        assert of_kind(template("--set", "crds.install=false"), "CustomResourceDefinition") == []

    def test_what_is_optional_is_off_and_can_be_had(self) -> None:
        names = {kind for kind, _, _ in template()}
        assert not {"PodMonitor"} & names and ("Deployment", "penstock-system", "kuberay-operator") not in template()
        rich = template(
            "--set", "monitoring.enabled=true", "--set", "kuberay.enabled=true", "--set", "monitoring.labels.release=prom"
        )
        (monitor,) = of_kind(rich, "PodMonitor")
        assert monitor["metadata"]["labels"]["release"] == "prom"
        (rules,) = [one for one in of_kind(rich, "Deployment") if one["metadata"]["name"] == "kuberay-operator"]
        assert OperatorSettings().kuberay_labels.items() <= rules["spec"]["template"]["metadata"]["labels"].items()
        assert of_kind(template("--set", "tickets.create=false"), "Secret") == []

    def test_dashboards_are_those_that_are_generated_where_grafana_finds_them(self) -> None:
        found = of_kind(template("--set", "dashboards.enabled=true"), "ConfigMap")
        held = {name: text for one in found for name, text in one["data"].items() if name.endswith(".json")}
        assert held == {f"{one.uid}.json": dashboards.text(one) for one in dashboards.DASHBOARDS}
        labels = [one["metadata"]["labels"] for one in found if any(name.endswith(".json") for name in one["data"])]
        assert all(one["grafana_dashboard"] == "1" for one in labels) and len(labels) == 3

    def test_a_value_that_is_wrong_stops_the_installation_by_its_name(self) -> None:
        done = subprocess.run(
            [str(helm), "template", "rel", str(CHART), "--set", "operator.replicas=0"], capture_output=True, text=True
        )
        assert done.returncode != 0 and "replicas" in done.stderr
