"""The kinds the shell itself reads and writes.

Promise: nothing here depends on what a plan holds.
"""

from typing import Any

from penstock_operator.shell.ports import SERVICE_LABEL, Id, Key, Kind

LLM_SERVICE = Kind("serving.penstock.dev/v1alpha1", "LLMService", "llmservices")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
EVENT = Kind("v1", "Event", "events")
POD = Kind("v1", "Pod", "pods")


def service_of(kind: Kind, metadata: Any) -> Key | None:
    """The LLMService that an object belongs to."""
    name = metadata["name"] if kind == LLM_SERVICE else (metadata.get("labels") or {}).get(SERVICE_LABEL)
    return Key(metadata.get("namespace", ""), name) if name else None


def id_of(kind: Kind, metadata: Any) -> Id:
    return kind.kind, metadata.get("namespace", ""), metadata["name"]
