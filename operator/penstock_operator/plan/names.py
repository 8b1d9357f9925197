"""Names, labels and owners of children.

Promise: a child's name follows from its service, its revision and what it is, so that a restarted operator finds it.
"""

from dataclasses import dataclass
from typing import Any

from penstock_operator.api.llmservice import API_VERSION, KIND, LLMService

FIELD_MANAGER = "penstock-operator"
SERVICE_LABEL = "serving.penstock.dev/service"
REVISION_LABEL = "serving.penstock.dev/revision"
POOL_LABEL = "serving.penstock.dev/pool"
COMPONENT_LABEL = "app.kubernetes.io/component"

GRPC_PORT = 9000
HTTP_PORT = 8000
REPORTS_PORT = 9001
WORKER_PORT = 9100
WORKER_METRICS_PORT = 9101
# NIXL's handshake; one process per GPU of a worker listens from here on.
SIDE_CHANNEL_PORT = 9110
SIDE_CHANNEL_PORTS = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose children they are."""

    name: str
    namespace: str
    uid: str

    @staticmethod
    def of(service: LLMService) -> "Identity":
        meta = service.metadata
        return Identity(meta.name, meta.namespace or "default", meta.uid)

    @property
    def router(self) -> str:
        return f"{self.name}-router"

    @property
    def reports(self) -> str:
        """The headless Service that workers dial."""
        return f"{self.name}-reports"

    @property
    def engine(self) -> str:
        return f"{self.name}-engine"

    def revision(self, revision_hash: str) -> str:
        return f"{self.name}-{revision_hash}"

    def storage(self, revision_hash: str) -> str:
        return f"{self.name}-{revision_hash}-gcs"

    def labels(self, component: str, **more: str) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": "penstock",
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/managed-by": FIELD_MANAGER,
            COMPONENT_LABEL: component,
            SERVICE_LABEL: self.name,
            **more,
        }

    def selector(self, component: str) -> dict[str, str]:
        return {SERVICE_LABEL: self.name, COMPONENT_LABEL: component}

    def metadata(self, name: str, labels: dict[str, str]) -> dict[str, Any]:
        return {"name": name, "namespace": self.namespace, "labels": labels, "ownerReferences": [self.owner()]}

    def owner(self) -> dict[str, Any]:
        """Not blocking the owner's deletion: that would ask for a right on its finalizers."""
        return {
            "apiVersion": API_VERSION, "kind": KIND, "name": self.name, "uid": self.uid,
            "controller": True, "blockOwnerDeletion": False,
        }  # fmt: skip


def revision_labels(identity: Identity, revision_hash: str) -> dict[str, str]:
    return identity.labels("engine", **{REVISION_LABEL: revision_hash})
