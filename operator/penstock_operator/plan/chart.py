"""The values of the Helm chart.

Promise: the one definition of values.yaml and values.schema.json, which `make gen` writes, with the roles' rules and the
CustomResourceDefinition, and a test compares.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field
from pydantic.fields import FieldInfo

from penstock_operator.api import crd
from penstock_operator.api.scalars import LabelValue, Name, Quantity
from penstock_operator.plan import dashboards
from penstock_operator.plan.permissions import CLUSTER, NAMESPACED, OWN
from penstock_operator.plan.settings import OperatorSettings, Part, PullPolicy

HEADER = "# Generated from penstock_operator.plan.chart by `make gen`; change a value with --set or -f.\n"
HEADER_RULES = "{{/* Generated from penstock_operator.plan.permissions by `make gen`; do not edit. */}}\n"


class Image(Part):
    """An image's name may begin with a registry; without one the nodes resolve it."""

    name: str = Field(default="penstock/operator-router", min_length=1, description="Name of the image.")
    tag: str = Field(default="", description="Its tag; empty: the chart's appVersion.")
    pull_policy: PullPolicy = Field(default="IfNotPresent", description="When nodes pull it.")
    pull_secrets: tuple[Name, ...] = Field(default=(), description="Secrets with the registry's credentials.")


class Operator(Part):
    replicas: int = Field(default=2, ge=1, le=5, description="One leads, the others stand by.")
    image: Image = Field(default=Image(), description="Image of the operator.")
    resources: dict[str, dict[str, Quantity]] = Field(
        default={"requests": {"cpu": "100m", "memory": "192Mi"}, "limits": {"memory": "512Mi"}},
        description="Requests and limits of an operator: cores, bytes.",
    )
    node_selector: dict[str, LabelValue] = Field(default={}, description="Labels of the nodes that may hold an operator.")
    tolerations: tuple[dict[str, Any], ...] = Field(default=(), description="Taints that an operator tolerates.")
    priority_class_name: str = Field(default="", description="PriorityClass of the operator; empty: none.")


class Scope(Part):
    cluster_wide: bool = Field(default=False, description="Serve every namespace, by a ClusterRole; else those of `namespaces`.")
    namespaces: tuple[Name, ...] = Field(default=(), description="Namespaces to serve; empty: the release's own.")
    storage_classes: bool = Field(
        default=True, description="May list StorageClasses (a ClusterRole), to know whether heads can keep their state."
    )


class Crds(Part):
    install: bool = Field(default=True, description="Install and upgrade the CustomResourceDefinition.")
    keep: bool = Field(default=True, description="Uninstalling leaves it, and with it every LLMService.")


class Monitoring(Part):
    enabled: bool = Field(default=False, description="A PodMonitor of the operator; needs Prometheus's operator.")
    interval: str = Field(default="15s", pattern=r"^[0-9]+(ms|s|m)$", description="Time between scrapes.")
    labels: dict[str, LabelValue] = Field(default={}, description="Labels by which a Prometheus finds it.")


class Dashboards(Part):
    enabled: bool = Field(default=False, description="A ConfigMap for each dashboard in files/dashboards.")
    label: str = Field(default="grafana_dashboard", description="Label by which Grafana's sidecar finds them.")


class Tickets(Part):
    create: bool = Field(default=True, description="A Secret that signs look-aside tickets, made once and kept.")


class Kuberay(Part):
    enabled: bool = Field(default=False, description="Install KubeRay's operator too; the cluster must not have one already.")
    image: str = Field(default="kuberay/operator:v1.6.1", min_length=1, description="Image of KubeRay's operator.")
    pull_policy: PullPolicy = Field(default="IfNotPresent", description="When nodes pull it.")
    resources: dict[str, dict[str, Quantity]] = Field(
        default={"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        description="Requests and limits of KubeRay's operator: cores, bytes.",
    )
    global_values: dict[str, Any] = Field(default={}, alias="global", description="Helm's values for all charts; none is read.")


class ChartValues(Part):
    operator: Operator = Field(default=Operator(), description="The operator's own pods.")
    scope: Scope = Field(default=Scope(), description="Where the operator works.")
    settings: OperatorSettings = Field(default=OperatorSettings(), description="Defaults of everything the operator makes.")
    crds: Crds = Field(default=Crds(), description="The definition of LLMService.")
    network_policy: bool = Field(default=True, description="Let nobody reach the operator but for metrics and health.")
    monitoring: Monitoring = Field(default=Monitoring(), description="Metrics of the operator.")
    dashboards: Dashboards = Field(default=Dashboards(), description="Grafana dashboards.")
    tickets: Tickets = Field(default=Tickets(), description="Look-aside tickets.")
    kuberay: Kuberay = Field(default=Kuberay(), description="The optional subchart.")
    global_values: dict[str, Any] = Field(default={}, alias="global", description="Helm's values for all charts; none is read.")


def schema_text() -> str:
    schema = ChartValues.model_json_schema(by_alias=True)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1) + "\n"


def rules_text() -> str:
    """The roles' rules as templates, from the table of permissions."""
    parts = [HEADER_RULES]
    for name, rules in (("namespaced", NAMESPACED), ("own", OWN), ("cluster", CLUSTER)):
        listed = [{"apiGroups": [r.group], "resources": list(r.resources), "verbs": list(r.verbs)} for r in rules]
        body = yaml.safe_dump(listed, sort_keys=False, width=1000)
        parts.append(f'{{{{- define "penstock.rules.{name}" -}}}}\n{body}{{{{- end }}}}\n')
    return "".join(parts)


def files() -> dict[str, str]:
    """What `make gen` writes, by its path in the chart."""
    return {
        "values.yaml": values_text(),
        "values.schema.json": schema_text(),
        "templates/_rules.tpl": rules_text(),
        "files/llmservices.yaml": crd.text(),
        **dashboards.files(),
    }


def write(chart: Path) -> None:
    for path, text in files().items():
        (chart / path).parent.mkdir(parents=True, exist_ok=True)
        (chart / path).write_text(text)


def values_text() -> str:
    """Every value with its default, and its description above it."""
    return HEADER + "\n".join(_lines(ChartValues(), 0)) + "\n"


def _lines(part: Part, depth: int) -> list[str]:
    lines, pad = [], "  " * depth
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if name == "global_values":
            continue
        lines.append(f"{pad}# {field.description}")
        if isinstance(value, Part):
            lines += [f"{pad}{_key(name, field)}:", *_lines(value, depth + 1)]
        else:
            lines.append(f"{pad}{_key(name, field)}: {_inline(part, name)}")
    return lines


def _key(name: str, field: FieldInfo) -> str:
    return field.alias or name


def _inline(part: Part, name: str) -> str:
    value = part.model_dump(mode="json")[name]
    return yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).removesuffix("\n...\n").strip()
