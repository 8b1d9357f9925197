"""Routers: what clients and workers talk to.

Promise: a router's configuration is checked by the router's own model before it is applied, and a change of it rolls routers one
by one, each of which ends its last stream before it goes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from penstock_operator.api import Spec
from penstock_operator.api.scalars import canonical
from penstock_operator.plan import pods
from penstock_operator.plan.engines import drain_s, grace_s
from penstock_operator.plan.names import COMPONENT_LABEL, GRPC_PORT, HTTP_PORT, REPORTS_PORT, SERVICE_LABEL, Identity
from penstock_operator.plan.settings import OperatorSettings
from penstock_router.config import RouterConfig, ServiceClass

CONFIG_FILE = "router.json"
CONFIG_DIGEST = "serving.penstock.dev/config"
_CONFIG_DIR = "/etc/penstock"
# For the endpoints of Services to lose the pod before it stops listening.
_UNLISTED_S = 5


def config(spec: Spec, identity: Identity) -> RouterConfig:
    """`router_id` is replaced by the pod's name (PENSTOCK_ROUTER_ID)."""
    classes = tuple(
        ServiceClass(name=one.name, ttft_s=one.ttft, tpot_s=one.tpot, priority=one.priority) for one in spec.slo.classes
    )
    chosen: dict[str, Any] = {"classes": classes, "default_class": spec.slo.default} if classes else {}
    return RouterConfig(
        router_id=identity.router,
        grpc_listen=f"0.0.0.0:{GRPC_PORT}",
        http_listen=f"0.0.0.0:{HTTP_PORT}",
        reports_listen=f"0.0.0.0:{REPORTS_PORT}",
        model=spec.model.served_name,
        topology_mode=spec.topology.mode,
        cache_dir=Path(pods.CACHE),
        grace_s=drain_s(spec),
        **chosen,
    )


def config_map(spec: Spec, identity: Identity) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": identity.metadata(identity.router, identity.labels("router")),
        "data": {CONFIG_FILE: _text(spec, identity)},
    }


def _text(spec: Spec, identity: Identity) -> str:
    return json.dumps(config(spec, identity).model_dump(mode="json"), indent=1, sort_keys=True)


def deployment(spec: Spec, identity: Identity, settings: OperatorSettings) -> dict[str, Any]:
    digest = hashlib.sha256(_text(spec, identity).encode()).hexdigest()[:16]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": identity.metadata(identity.router, identity.labels("router")),
        "spec": {
            "replicas": spec.router.replicas,
            "selector": {"matchLabels": identity.selector("router")},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": identity.labels("router"), "annotations": {CONFIG_DIGEST: digest}},
                "spec": _pod(spec, identity, settings),
            },
        },
    }


def _pod(spec: Spec, identity: Identity, settings: OperatorSettings) -> dict[str, Any]:
    volumes, mounts = pods.scratch(pods.TMP, pods.CACHE)
    volumes.append({"name": "config", "configMap": {"name": identity.router}})
    mounts.append({"name": "config", "mountPath": _CONFIG_DIR, "readOnly": True})
    router = pods.container(
        "router",
        settings.images.router,
        settings,
        command=["penstock", "router", "--config", f"{_CONFIG_DIR}/{CONFIG_FILE}"],
        env=[*pods.environment(PYTHONSAFEPATH="1", HOME=pods.TMP), pods.from_field("PENSTOCK_ROUTER_ID", "metadata.name")],
        # As the server will hold it: otherwise an operator that starts would write it once more.
        resources={
            sort: {name: canonical(amount) for name, amount in given.items()}
            for sort, given in (spec.router.resources or settings.router_resources).items()
        },
        ports=[
            {"name": name, "containerPort": port}
            for name, port in (("grpc", GRPC_PORT), ("http", HTTP_PORT), ("reports", REPORTS_PORT))
        ],
        volumeMounts=mounts,
        # A router that says no is unlisted in 2 s; one that is slow to answer, on a node whose cores are taken, still serves.
        readinessProbe={
            "httpGet": {"path": "/readyz", "port": "http"},
            "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 2,
        },
        livenessProbe={
            "httpGet": {"path": "/healthz", "port": "http"},
            "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 6,
        },
        lifecycle={"preStop": {"sleep": {"seconds": _UNLISTED_S}}},
    )  # fmt: skip
    return pods.pod(
        settings,
        serviceAccountName=identity.router,
        automountServiceAccountToken=False,
        terminationGracePeriodSeconds=grace_s(spec),
        topologySpreadConstraints=[
            {
                "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": identity.selector("router")},
            }
        ],
        containers=[router],
        volumes=volumes,
    )  # fmt: skip


def services(spec: Spec, identity: Identity) -> list[dict[str, Any]]:
    """The one that clients call, and the headless one that workers dial: also routers that are not ready yet."""

    def service(name: str, ports: dict[str, int], **fields: Any) -> dict[str, Any]:
        listed = [{"name": port, "port": number, "targetPort": port, "protocol": "TCP"} for port, number in ports.items()]
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": identity.metadata(name, identity.labels("router")),
            "spec": {"selector": identity.selector("router"), "ports": listed, **fields},
        }

    return [
        service(identity.name, {"grpc": GRPC_PORT, "http": HTTP_PORT}, type=spec.router.service.type),
        service(identity.reports, {"reports": REPORTS_PORT}, clusterIP="None", publishNotReadyAddresses=True),
    ]


def network_policy(identity: Identity) -> dict[str, Any]:
    """Clients from anywhere; reports from the service's workers; out to them and to DNS."""
    workers = {"podSelector": {"matchLabels": identity.selector("engine")}}
    dns = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": identity.metadata(identity.router, identity.labels("router")),
        "spec": {
            "podSelector": {"matchLabels": identity.selector("router")},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"ports": [{"protocol": "TCP", "port": port} for port in (GRPC_PORT, HTTP_PORT)]},
                {"from": [workers], "ports": [{"protocol": "TCP", "port": REPORTS_PORT}]},
            ],
            "egress": [{"to": [workers]}, {"ports": dns}],
        },
    }


def disruption_budget(identity: Identity) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": identity.metadata(identity.router, identity.labels("router")),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": identity.selector("router")}},
    }


def monitor(identity: Identity, component: str, port: str) -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": identity.metadata(f"{identity.name}-{component}", identity.labels(component)),
        "spec": {
            "selector": {"matchLabels": {SERVICE_LABEL: identity.name, COMPONENT_LABEL: component}},
            "podMetricsEndpoints": [{"port": port, "path": "/metrics", "interval": "15s"}],
        },
    }
