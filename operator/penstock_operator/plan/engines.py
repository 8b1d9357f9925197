"""The workers of a revision: a RayService whose Serve application places, starts, watches and stops engines.

Promise: `freeze` is called once in a revision's life; what it returns is kept and rendered again and again, by this operator and
later ones. One worker is one pod.
"""

import json
import math
from typing import Any

from penstock_operator.api import LLMService, Spec
from penstock_operator.api.engine_args import python_name
from penstock_operator.api.llmservice import Pool
from penstock_operator.api.rules import GPU_RESOURCE
from penstock_operator.api.scalars import canonical
from penstock_operator.plan import models, pods
from penstock_operator.plan.names import (
    POOL_LABEL,
    REPORTS_PORT,
    SIDE_CHANNEL_PORT,
    WORKER_METRICS_PORT,
    WORKER_PORT,
    Identity,
    revision_labels,
)
from penstock_operator.plan.revision import Record, engine_inputs, revision_hash
from penstock_operator.plan.settings import OperatorSettings
from penstock_workers.config import WorkerConfig

BUILDER = "penstock_workers.pool.deployment:build_app"
_GCS = "/gcs"
_OBJECT_STORE_BYTES = 100_000_000  # Penstock puts nothing into it
_MOST_PODS = 10_000  # of a group; Serve's replicas decide
_STOP_MARGIN_S = 15  # after the drain: closing the server and the engine
_GRACE_MARGIN_S = 30
_NEVER_S = 7 * 24 * 3600  # KubeRay's own judgement of health must not replace a revision
# The head may be away while it is placed anew and opens its state again.
_HEAD_AWAY_S = 600
_PRESTOP = "penstock_workers.pool.prestop"
# Ten times a second by default: 5 % of a core for ever.
_OF_HEADS = {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5"}
_OF_WORKERS = {
    # Workers' own logs are the pod's, not files that go with it.
    "RAY_LOG_TO_STDERR": "1",
    # On a node whose cores are taken a process may need longer than Ray's 60 s to register.
    "RAY_worker_register_timeout_seconds": "180",
}
# Nothing listens on `serve`, but KubeRay gives a RayService up as an error whose head does not name that port.
_HEAD_PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}


def freeze(service: LLMService, identity: Identity, settings: OperatorSettings, storage_class: bool) -> Record:
    spec = service.spec
    durable = storage_class and settings.gcs_storage.enabled
    return Record(
        inputs=engine_inputs(spec),
        ray_service=_ray_service(spec, identity, settings, durable),
        serve=_serve(spec, identity, settings),
        storage=_claim(settings) if durable else None,
    )


def drain_s(spec: Spec) -> int:
    return math.ceil(spec.rollout.drain_timeout)


def grace_s(spec: Spec) -> int:
    return drain_s(spec) + _GRACE_MARGIN_S


def worker_config(spec: Spec, pool: str, identity: Identity, fake: bool) -> WorkerConfig:
    """`host` is replaced by the pod's address (PENSTOCK_HOST) where the worker starts."""
    given = {python_name(key): value for key, value in spec.engine.args.items()}
    dtype = given.pop("dtype", None)
    degree = spec.topology.pools[pool].parallelism
    if degree.tensor * degree.pipeline > 1:
        given |= {
            "tensor_parallel_size": degree.tensor,
            "pipeline_parallel_size": degree.pipeline,
            "distributed_executor_backend": "ray",
        }
    return WorkerConfig.model_validate(
        {
            "worker_id": f"{identity.name}-{pool}",
            "pool": pool,
            "source": _source(spec),
            "model": spec.model.served_name,
            "engine": "fake" if fake else "vllm",
            "engine_args": given,
            "device": spec.engine.device,
            "dtype": dtype,
            "cache_dir": pods.CACHE,
            "port": WORKER_PORT,
            "metrics_port": WORKER_METRICS_PORT,
            "side_channel_port": SIDE_CHANNEL_PORT,
            "routers": [f"{identity.reports}:{REPORTS_PORT}"],
            "drain_timeout_s": spec.rollout.drain_timeout,
        }
    )


def _source(spec: Spec) -> str:
    """A claim's path becomes a path in the pod, where the claim is mounted."""
    scheme, _, rest = spec.model.source.partition("://")
    if scheme != "pvc":
        return spec.model.source
    return f"file://{_claim_mount(rest)}/{rest.partition('/')[2].strip('/')}".rstrip("/")


def _claim_mount(rest: str) -> str:
    return f"/models/{rest.partition('/')[0]}"


def _serve(spec: Spec, identity: Identity, settings: OperatorSettings) -> dict[str, Any]:
    """An application per pool: Serve takes no size of 0, but an application may go.

    The deployments' replicas are the one thing that changes in a live revision; `args` never do, or Serve restarts the workers.
    """
    return {
        "proxy_location": "Disabled",
        "applications": [_application(spec, name, pool, identity, settings) for name, pool in spec.topology.pools.items()],
    }


def _application(spec: Spec, name: str, pool: Pool, identity: Identity, settings: OperatorSettings) -> dict[str, Any]:
    worker = worker_config(spec, name, identity, settings.fake_engine).model_dump(mode="json")
    return {
        "name": name,
        "route_prefix": None,
        "import_path": BUILDER,
        "args": {"pools": {name: {"replicas": 1, "worker": worker}}},
        "deployments": [_deployment(spec, name, pool)],
    }


def _deployment(spec: Spec, name: str, pool: Pool) -> dict[str, Any]:
    devices = pool.parallelism.tensor * pool.parallelism.pipeline
    made: dict[str, Any] = {
        "name": name,
        "max_ongoing_requests": 1,
        "graceful_shutdown_timeout_s": drain_s(spec) + _STOP_MARGIN_S,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 1,
        "health_check_timeout_s": 30,
    }
    gpus = 0 if spec.engine.device == "cpu" else devices
    if gpus > 1:
        # vLLM's Ray executor takes a bundle per GPU; the actor itself takes none.
        made["ray_actor_options"] = {"num_cpus": 0}
        made["placement_group_bundles"] = [{"GPU": 1, name: math.floor(10_000 / devices) / 10_000}] * devices
        made["placement_group_strategy"] = "STRICT_PACK"
    else:
        made["ray_actor_options"] = {"num_cpus": 0, **({"num_gpus": gpus} if gpus else {}), "resources": {name: 1}}
    return made


def _claim(settings: OperatorSettings) -> dict[str, Any]:
    chosen = settings.gcs_storage.storage_class
    return {
        "accessModes": ["ReadWriteOnce"],
        **({"storageClassName": chosen} if chosen else {}),
        "resources": {"requests": {"storage": canonical(settings.gcs_storage.size)}},
    }


def _ray_service(spec: Spec, identity: Identity, settings: OperatorSettings, durable: bool) -> dict[str, Any]:
    image = spec.engine.image or (settings.images.gpu if spec.engine.device == "gpu" else settings.images.cpu)
    labels = revision_labels(identity, revision_hash(spec))
    _, tmp = pods.scratch(pods.TMP)
    return {
        "serviceUnhealthySecondThreshold": _NEVER_S,
        "deploymentUnhealthySecondThreshold": _NEVER_S,
        # A revision's cluster is never replaced by another: a change is another revision.
        "upgradeStrategy": {"type": "None"},
        "rayClusterConfig": {
            "rayVersion": settings.ray_version,
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {
                "version": "v2",
                "idleTimeoutSeconds": settings.idle_timeout_s,
                "image": image,
                "imagePullPolicy": settings.images.pull_policy,
                "securityContext": pods.container_security(),
                "volumeMounts": tmp,
                "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
            },
            "headGroupSpec": _head(identity, image, settings, labels, grace_s(spec), durable),
            "workerGroupSpecs": [_group(spec, name, image, settings, labels, durable) for name in spec.topology.pools],
        },
    }


def _ray_environment(**more: str) -> list[dict[str, Any]]:
    return pods.environment(RAY_USAGE_STATS_ENABLED="0", HOME=pods.HOME, PYTHONSAFEPATH="1", **more)


def _head(
    identity: Identity, image: str, settings: OperatorSettings, labels: dict[str, str], grace: int, durable: bool
) -> dict[str, Any]:
    volumes, mounts = pods.scratch(pods.TMP, pods.HOME)
    # Ray drains nothing on its head, it only waits: the hook has waited for what matters.
    environment = _ray_environment(RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0", **_OF_HEADS)
    if durable:
        claim = identity.storage(labels["serving.penstock.dev/revision"])
        environment += pods.environment(RAY_gcs_storage="rocksdb", RAY_gcs_storage_path=f"{_GCS}/db")
        volumes.append({"name": "gcs", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "gcs", "mountPath": _GCS})
    head = pods.container(
        "ray-head",
        image,
        settings,
        env=environment,
        resources=settings.model_dump(mode="json")["head_resources"],
        ports=[{"name": name, "containerPort": port} for name, port in _HEAD_PORTS.items()],
        volumeMounts=mounts,
        # Workers cannot leave a cluster whose head is gone in time: the head goes last.
        lifecycle={"preStop": {"exec": {"command": ["python", "-m", _PRESTOP, "head", "--timeout", str(grace)]}}},
    )
    return {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", "object-store-memory": str(_OBJECT_STORE_BYTES)},
        "template": {
            "metadata": {"labels": labels},
            "spec": pods.pod(
                settings,
                # As the first process of its container, the autoscaler would ignore SIGTERM until the grace is over.
                shareProcessNamespace=True,
                terminationGracePeriodSeconds=grace + _GRACE_MARGIN_S,
                containers=[head],
                volumes=volumes,
            ),
        },
    }


def _group(
    spec: Spec, name: str, image: str, settings: OperatorSettings, labels: dict[str, str], durable: bool
) -> dict[str, Any]:
    pool = spec.topology.pools[name]
    gpus = 0 if spec.engine.device == "cpu" else pool.parallelism.tensor * pool.parallelism.pipeline
    start = {
        "num-cpus": "1",
        "object-store-memory": str(_OBJECT_STORE_BYTES),
        "resources": json.dumps(json.dumps({name: 1})),
        **({"num-gpus": str(gpus)} if gpus else {}),
    }
    volumes, mounts = _volumes(spec)
    worker = _worker(spec, pool, image, settings, gpus, mounts, durable)
    fetchers = models.fetchers(spec, image, settings, worker["env"], mounts)
    template = pods.pod(
        settings,
        serviceAccountName=labels["serving.penstock.dev/service"] + "-engine",
        automountServiceAccountToken=False,
        terminationGracePeriodSeconds=grace_s(spec),
        containers=[worker],
        **({"initContainers": fetchers} if fetchers else {}),
        volumes=volumes,
        **({"nodeSelector": dict(pool.node_selector)} if pool.node_selector else {}),
        **({"tolerations": [_toleration(one) for one in pool.tolerations]} if pool.tolerations else {}),
    )
    return {
        "groupName": name,
        # KubeRay's own default; without it the group, which is owned whole, would differ from what was asked for.
        "numOfHosts": 1,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": _MOST_PODS,
        "rayStartParams": start,
        "template": {"metadata": {"labels": {**labels, POOL_LABEL: name}}, "spec": template},
    }


def _toleration(one: Any) -> dict[str, Any]:
    made: dict[str, Any] = one.model_dump(mode="json", by_alias=True, exclude_none=True)
    return made


def _volumes(spec: Spec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes, mounts = pods.scratch(pods.TMP, pods.HOME)
    cache = {"persistentVolumeClaim": {"claimName": spec.model.cache.pvc}} if spec.model.cache else {"emptyDir": {}}
    volumes.append({"name": "cache", **cache})
    mounts.append({"name": "cache", "mountPath": pods.CACHE})
    shm = {"sizeLimit": spec.engine.shm} if spec.engine.shm else {}
    volumes.append({"name": "shared-mem", "emptyDir": {"medium": "Memory", **shm}})
    mounts.append({"name": "shared-mem", "mountPath": "/dev/shm"})
    scheme, _, rest = spec.model.source.partition("://")
    if scheme == "pvc":
        claim = rest.partition("/")[0]
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
        mounts.append({"name": "model", "mountPath": _claim_mount(rest), "readOnly": True})
    return volumes, mounts


def _worker(
    spec: Spec, pool: Pool, image: str, settings: OperatorSettings, gpus: int, mounts: list[dict[str, Any]], durable: bool
) -> dict[str, Any]:
    environment = [
        *_ray_environment(RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=str(drain_s(spec) + _STOP_MARGIN_S), **_OF_WORKERS),
        pods.from_field("PENSTOCK_HOST", "status.podIP"),
    ]
    if durable:
        environment += pods.environment(
            RAY_gcs_rpc_server_reconnect_timeout_s=str(_HEAD_AWAY_S), RAY_gcs_server_port_wait_time_s="120"
        )
    environment += models.credentials(spec)
    environment += [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in spec.engine.env]
    return pods.container(
        "ray-worker",
        image,
        settings,
        env=environment,
        resources=_resources(pool, gpus),
        ports=[
            {"name": name, "containerPort": port, "protocol": "TCP"}
            for name, port in (("worker", WORKER_PORT), ("metrics", WORKER_METRICS_PORT))
        ],
        volumeMounts=mounts,
        # Ready is what serves: KubeRay's own probe asks for a Serve proxy, of which there is none.
        readinessProbe={"tcpSocket": {"port": WORKER_PORT}, "periodSeconds": 1, "failureThreshold": 3},
        # Serve watches the engine; this one only says that the container lives.
        livenessProbe={"exec": {"command": ["true"]}, "periodSeconds": 30, "timeoutSeconds": 10},
        lifecycle={"preStop": {"exec": {"command": ["python", "-m", _PRESTOP, "worker", "--timeout", str(drain_s(spec))]}}},
    )


def _resources(pool: Pool, gpus: int) -> dict[str, Any]:
    made: dict[str, Any] = {kind: dict(given) for kind, given in pool.resources.items()}
    if gpus:
        made.setdefault("limits", {})[GPU_RESOURCE] = str(gpus)
    return made
