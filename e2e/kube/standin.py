"""A small plan to test the shell with: N ConfigMaps and a Service per LLMService, and a status that counts them.

Promise: pure; what it wants follows from the spec alone, so that an undisturbed run and a disturbed one have one right end.
Run as `python -m kube.standin OPTIONS`, it is an operator.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from penstock_operator.plan.names import SERVICE_LABEL
from penstock_operator.plan.reconcile import Event, Plan, Ref
from penstock_operator.shell.lease import Timing
from penstock_operator.shell.ports import Kind, Object, Offered

CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
SERVICE = Kind("v1", "Service", "services")
API_VERSION = "serving.penstock.dev/v1alpha1"
_OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
    "metadata": {"name": "llmservices.serving.penstock.dev"},
    "spec": {
        "group": "serving.penstock.dev", "scope": "Namespaced",
        "names": {"kind": "LLMService", "plural": "llmservices", "singular": "llmservice", "shortNames": ["llm"]},
        "versions": [
            {
                "name": "v1alpha1", "served": True, "storage": True, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": _OPEN, "status": _OPEN}}},
            }
        ],
    },
}  # fmt: skip


def service(namespace: str, name: str, *, configs: int = 1, value: str = "v", **spec: Any) -> dict[str, Any]:
    meta = {"namespace": namespace, "name": name}
    return {
        "apiVersion": API_VERSION,
        "kind": "LLMService",
        "metadata": meta,
        "spec": {"configs": configs, "value": value, **spec},
    }


@dataclass(frozen=True, slots=True)
class StandIn:
    kinds: tuple[Kind, ...] = (CONFIG_MAP, SERVICE)
    watched: tuple[Kind, ...] = (CONFIG_MAP, SERVICE)

    def looks(self, document: Object, children: Sequence[Object]) -> tuple[()]:
        return ()

    def plan(self, document: Object, children: Sequence[Object], offered: Offered, now_s: float) -> Plan:
        spec, meta = document.get("spec") or {}, document["metadata"]
        wanted = [self._config(document, number) for number in range(spec["configs"])]
        names = {body["metadata"]["name"] for body in wanted}
        found = {child["metadata"]["name"] for child in children if child["kind"] == "ConfigMap"}
        surplus = tuple(Ref("v1", "ConfigMap", name) for name in sorted(found - names))
        ready = len(found & names)
        old = document.get("status") or {}
        phase = "Ready" if ready == len(wanted) and not surplus else "Progressing"
        events = (Event("Normal", "Ready", f"{ready} are there"),) if phase == "Ready" and old.get("phase") != "Ready" else ()
        status = {
            "observedGeneration": meta["generation"], "phase": phase,
            "pools": [{"name": "configs", "desired": len(wanted), "ready": ready, "draining": len(surplus)}],
        }  # fmt: skip
        return Plan((*wanted, self._service(document)), surplus, status, events, None)

    def _config(self, document: Object, number: int) -> dict[str, Any]:
        meta = self._meta(document, f"{document['metadata']['name']}-{number}")
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"value": document["spec"]["value"]}}

    def _service(self, document: Object) -> dict[str, Any]:
        spec = {"ports": [{"name": "grpc", "port": 9000}], "selector": {SERVICE_LABEL: document["metadata"]["name"]}}
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self._meta(document, document["metadata"]["name"]),
            "spec": spec,
        }

    @staticmethod
    def _meta(document: Object, name: str) -> dict[str, Any]:
        owner = {"apiVersion": API_VERSION, "kind": "LLMService", "controller": True}
        meta = document["metadata"]
        owner |= {"name": meta["name"], "uid": meta["uid"]}
        labels = {SERVICE_LABEL: meta["name"]}
        return {"namespace": meta["namespace"], "name": name, "labels": labels, "ownerReferences": [owner]}


def options(words: Sequence[str]) -> Any:
    from penstock_operator.shell.main import Options

    parser = argparse.ArgumentParser()
    parser.add_argument("--options", required=True, help="fields of Options as JSON; timing as three numbers")
    fields = json.loads(parser.parse_args(words).options)
    timing = Timing(*fields.pop("timing")) if "timing" in fields else Timing()
    return Options(timing=timing, **fields)


if __name__ == "__main__":
    from penstock_operator.shell.main import main

    sys.exit(main(options(sys.argv[1:]), None, lambda _: StandIn()))
