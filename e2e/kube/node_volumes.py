"""Volumes for the test node: a default StorageClass and folders of the node that claims of it bind to.

Promise: each volume serves one claim, once; a pod's user may write to it; nothing stays when the node's folder goes.
"""

from typing import Any

from kube.control import Cluster

CLASS = "node-folders"


def add(cluster: Cluster, count: int) -> None:
    """No provisioner can run here, so the volumes are made ahead. `local`, unlike hostPath, follows a pod's fsGroup."""
    storage: dict[str, Any] = {
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
    }  # fmt: skip
    volumes = []
    for number in range(count):
        folder = cluster.state / f"volumes/{number}"
        folder.mkdir(parents=True)
        volumes.append(_volume(f"folder-{number}", str(folder)))
    cluster.apply(storage, *volumes)


def _volume(name: str, path: str) -> dict[str, Any]:
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node1"]}
    return {
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": CLASS,
            "persistentVolumeReclaimPolicy": "Retain", "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }  # fmt: skip
