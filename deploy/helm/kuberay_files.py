"""Writes what the subchart `kuberay` takes from KubeRay's own repository: definitions and rules.

    python deploy/helm/kuberay_files.py PATH/ray-operator@v1.6.1

PATH is a checkout of KubeRay's `ray-operator`, such as the Go module that `e2e/kube` builds from. Descriptions and old versions
are left out: with them the definitions are 3 MB, and a Helm release holds 1.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "penstock/charts/kuberay"
KINDS = ("rayclusters", "rayservices", "rayjobs")


def bare(node: Any) -> Any:
    """Without descriptions."""
    if isinstance(node, dict):
        return {key: bare(value) for key, value in node.items() if not (key == "description" and isinstance(value, str))}
    return [bare(one) for one in node] if isinstance(node, list) else node


def definition(text: str) -> dict[str, Any]:
    document = yaml.load(text, Loader=yaml.CSafeLoader)
    document["spec"]["versions"] = [one for one in document["spec"]["versions"] if one["name"] == "v1"]
    found: dict[str, Any] = bare(document)
    return found


def main(source: Path) -> None:
    for kind in KINDS:
        made = definition((source / f"config/crd/bases/ray.io_{kind}.yaml").read_text())
        (CHART / f"crds/{kind}.json").write_text(json.dumps(made, separators=(",", ":")) + "\n")
    parts = ["{{/* From KubeRay by deploy/helm/kuberay_files.py; do not edit. */}}\n"]
    for name, file in (("operator", "role.yaml"), ("leader", "leader_election_role.yaml")):
        rules = yaml.safe_load((source / "config/rbac" / file).read_text())["rules"]
        parts.append(f'{{{{- define "kuberay.rules.{name}" -}}}}\n{yaml.safe_dump(rules, sort_keys=False)}{{{{- end }}}}\n')
    (CHART / "templates/_rules.tpl").write_text("".join(parts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
