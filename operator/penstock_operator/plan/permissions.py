"""What the operator may do, next to the code that needs it.

Promise: the chart's roles are exactly this table, and a test compares the two; the shell's calls are replayed against it.
"""

from dataclasses import dataclass

# Reading, and server-side apply, which creates by a patch but is authorised as both.
_OWN = ("get", "list", "create", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Child:
    """A kind the operator makes for a service, or looks at. Optional kinds may not be served."""

    api_version: str
    kind: str
    plural: str
    verbs: tuple[str, ...] = _OWN
    optional: bool = False
    pruned: bool = True  # a child of this kind that a plan no longer names is deleted
    watched: bool = False  # its events wake a reconcile at once

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]


CHILDREN: tuple[Child, ...] = (
    Child("v1", "ServiceAccount", "serviceaccounts"),
    Child("v1", "ConfigMap", "configmaps"),
    Child("v1", "Service", "services"),
    Child("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    Child("v1", "Pod", "pods", verbs=("get", "list", "watch"), pruned=False, watched=True),
    Child("apps/v1", "Deployment", "deployments", verbs=(*_OWN, "watch"), watched=True),
    Child("apps/v1", "ControllerRevision", "controllerrevisions"),
    Child("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Child("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Child("monitoring.coreos.com/v1", "PodMonitor", "podmonitors", optional=True),
    Child("ray.io/v1", "RayService", "rayservices", verbs=(*_OWN, "watch"), optional=True, watched=True),
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a Role."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]


# In every namespace that is served.
NAMESPACED: tuple[Rule, ...] = (
    Rule("serving.penstock.dev", ("llmservices",), ("get", "list", "watch")),
    Rule("serving.penstock.dev", ("llmservices/status",), ("patch",)),
    *(Rule(child.group, (child.plural,), child.verbs) for child in CHILDREN),
    Rule("", ("pods/log",), ("get",)),  # how far a model's fetcher is
    Rule("", ("events",), ("create",)),
)
# In the operator's own namespace: leader election.
OWN: tuple[Rule, ...] = (Rule("coordination.k8s.io", ("leases",), ("get", "create", "update")),)
# Of the cluster: whether a default StorageClass exists.
CLUSTER: tuple[Rule, ...] = (Rule("storage.k8s.io", ("storageclasses",), ("list",)),)
