"""From what is desired to objects.

Promise: plain objects for server-side apply, in the order in which they are to be applied; the same values give the same objects.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock_operator.api import LLMService
from penstock_operator.plan import routers
from penstock_operator.plan.names import POOL_LABEL, WORKER_METRICS_PORT, WORKER_PORT, Identity, revision_labels
from penstock_operator.plan.revision import Record
from penstock_operator.plan.settings import OperatorSettings

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RevisionDesired:
    hash: str
    record: Mapping[str, Any]
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything of a service at this step of its rollout."""

    service: LLMService
    identity: Identity
    revisions: tuple[RevisionDesired, ...]
    pools: Mapping[str, int]  # pool -> workers, when no rollout is on
    kinds: frozenset[str]


def render(desired: Desired, settings: OperatorSettings) -> tuple[Object, ...]:
    identity, spec = desired.identity, desired.service.spec
    objects: list[Object] = [
        _account(identity, identity.router, "router"),
        _account(identity, identity.engine, "engine"),
        routers.network_policy(identity),
        _engine_policy(identity, settings),
        routers.config_map(spec, identity),
        *routers.services(spec, identity),
        routers.deployment(spec, identity, settings),
        routers.disruption_budget(identity),
        *(_engine_budget(identity, pool, size, spec.rollout.max_unavailable) for pool, size in desired.pools.items()),
    ]
    if "PodMonitor" in desired.kinds:
        objects += [routers.monitor(identity, "router", "http"), routers.monitor(identity, "engine", "metrics")]
    for revision in desired.revisions:
        objects += _revision(identity, revision)
    return tuple(objects)


def _account(identity: Identity, name: str, component: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": identity.metadata(name, identity.labels(component)),
        "automountServiceAccountToken": False,
    }


def _revision(identity: Identity, revision: RevisionDesired) -> list[Object]:
    """Its record first: a RayService without one could not be rendered again."""
    record = Record.of(revision.record)
    name, labels = identity.revision(revision.hash), revision_labels(identity, revision.hash)
    objects: list[Object] = [
        {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": identity.metadata(name, labels),
            "revision": 1,
            "data": dict(revision.record),
        }
    ]
    if record.storage is not None:
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": dict(record.storage)}
        objects.append({**claim, "metadata": identity.metadata(identity.storage(revision.hash), labels)})
    objects.append(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": identity.metadata(name, labels),
            "spec": {**record.ray_service, "serveConfigV2": serve_config(record, revision.sizes)},
        }
    )
    return objects


def serve_config(record: Record, sizes: Mapping[str, int]) -> str:
    """The record's applications at these sizes; one of size 0 is left out, which ends its workers."""
    applications = [_sized(one, sizes[one["name"]]) for one in record.serve["applications"] if sizes.get(one["name"])]
    return json.dumps({**record.serve, "applications": applications}, sort_keys=True)


def _sized(application: Mapping[str, Any], size: int) -> dict[str, Any]:
    return {**application, "deployments": [{**one, "num_replicas": size} for one in application["deployments"]]}


def _engine_policy(identity: Identity, settings: OperatorSettings) -> Object:
    """Routers and the service's own workers; KubeRay's operator to the head; metrics for whoever scrapes."""
    router = {"podSelector": {"matchLabels": identity.selector("router")}}
    workers = {"podSelector": {"matchLabels": identity.selector("engine")}}
    kuberay = {"namespaceSelector": {}, "podSelector": {"matchLabels": dict(settings.kuberay_labels)}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": identity.metadata(identity.engine, identity.labels("engine")),
        "spec": {
            "podSelector": {"matchLabels": identity.selector("engine")},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [router], "ports": [{"protocol": "TCP", "port": WORKER_PORT}]},
                {"from": [workers]},
                {"from": [kuberay], "ports": [{"protocol": "TCP", "port": 8265}]},
                {"ports": [{"protocol": "TCP", "port": WORKER_METRICS_PORT}]},
            ],
        },
    }


def _engine_budget(identity: Identity, pool: str, size: int, unavailable: int) -> Object:
    """Kubernetes knows no scale of RayClusters, so that the budget is a number of workers that stay."""
    selector = {**identity.selector("engine"), POOL_LABEL: pool}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": identity.metadata(f"{identity.name}-{pool}", identity.labels("engine", **{POOL_LABEL: pool})),
        "spec": {"minAvailable": max(0, size - max(1, unavailable)), "selector": {"matchLabels": selector}},
    }
