"""What every pod of a service has in common.

Promise: pods meet the restricted pod security standard, have a read-only root, and get no variables of other Services (vLLM reads
VLLM_PORT, which a Service called vllm would set).
"""

from typing import Any

from penstock_operator.plan.settings import OperatorSettings

TMP = "/tmp"
HOME = "/home/penstock"
CACHE = "/cache"


def pod_security(settings: OperatorSettings) -> dict[str, Any]:
    user = settings.run_as_user
    ids = {} if user == 0 else {"runAsUser": user, "runAsGroup": user, "fsGroup": user, "fsGroupChangePolicy": "OnRootMismatch"}
    return {"runAsNonRoot": True, **ids, "seccompProfile": {"type": "RuntimeDefault"}}


def container_security() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def pod(settings: OperatorSettings, **fields: Any) -> dict[str, Any]:
    """A pod's spec with the parts that all share."""
    secrets = settings.images.pull_secrets
    return {
        "enableServiceLinks": False,
        "securityContext": pod_security(settings),
        **({"imagePullSecrets": [{"name": one} for one in secrets]} if secrets else {}),
        **fields,
    }


def container(name: str, image: str, settings: OperatorSettings, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.images.pull_policy,
        "securityContext": container_security(),
        **fields,
    }


def environment(**values: str) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def from_field(name: str, path: str) -> dict[str, Any]:
    """With what the API server would fill in: inside of a field that is owned whole, a default looks like somebody's change."""
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def scratch(*paths: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts of folders that may be written and end with the pod."""
    named = [(path.strip("/").replace("/", "-"), path) for path in paths]
    return [{"name": name, "emptyDir": {}} for name, _ in named], [{"name": name, "mountPath": path} for name, path in named]
