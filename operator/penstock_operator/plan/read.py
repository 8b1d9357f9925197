"""From objects as the API server has them to what was seen.

Promise: pure, and total: a field that is missing or of another shape than expected counts as not there. Only children that the
LLMService owns are counted; what others made beside them is left alone.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from penstock_operator.plan import looks, models
from penstock_operator.plan.names import COMPONENT_LABEL, POOL_LABEL, REVISION_LABEL
from penstock_operator.plan.observed import Cluster, Object, Observed, PoolSeen, Progress, RevisionSeen, RoutersSeen, Trouble
from penstock_operator.plan.revision import Record

# Reasons for which a container waits that do not pass by themselves.
_STUCK = {
    "ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "CrashLoopBackOff", "CreateContainerConfigError",
    "CreateContainerError", "RunContainerError",
}  # fmt: skip
_FAILED_APPLICATION = {"DEPLOY_FAILED", "UNHEALTHY"}
_MOST_MESSAGE = 400
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Refused|Unavailable|Exit|Interrupt)\b")


def read(document: Object, children: Sequence[Object], cluster: Cluster) -> Observed:
    """`children` are of the kinds of `permissions.CHILDREN`, in the service's namespace, with its label."""
    uid = _meta(document).get("uid", "")
    owned = [one for one in children if _owned(one, uid)]
    pods = [one for one in children if one.get("kind") == "Pod"]
    records = {_label(one, REVISION_LABEL): one for one in owned if one.get("kind") == "ControllerRevision"}
    rays = {_label(one, REVISION_LABEL): one for one in owned if one.get("kind") == "RayService"}
    model = _model(document, children)
    made = [_revision(name, record, rays.get(name), pods, model) for name, record in records.items()]
    return Observed(
        revisions=tuple(sorted((one for one in made if one is not None), key=lambda one: (one.created, one.hash))),
        routers=_routers([one for one in owned if one.get("kind") == "Deployment"], pods),
        progress=_progress(document),
        cluster=cluster,
        children=frozenset((str(one.get("apiVersion")), str(one.get("kind")), str(_meta(one).get("name"))) for one in owned),
        downloads=looks.downloads(children),
        attainment=looks.attainment(children),
    )


@dataclass(frozen=True, slots=True)
class _Model:
    source: str
    secret: str  # with the credentials
    going: frozenset[str]  # pods that fetch it, without a fault


def _model(document: Object, children: Sequence[Object]) -> _Model:
    model = (document.get("spec") or {}).get("model") or {}
    secret = str((model.get("secretRef") or {}).get("name", ""))
    return _Model(str(model.get("source", "")), secret, looks.known(children))


def _meta(one: Object) -> Mapping[str, Any]:
    return one.get("metadata") or {}


def _label(one: Object, key: str) -> str:
    return str((_meta(one).get("labels") or {}).get(key, ""))


def _owned(one: Object, uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in _meta(one).get("ownerReferences") or ())


def _revision(name: str, record: Object, ray: Object | None, pods: Iterable[Object], model: _Model) -> RevisionSeen | None:
    data = record.get("data")
    try:
        names = Record.of(data or {}).pools
    except (KeyError, TypeError):
        return None
    mine = [pod for pod in pods if _label(pod, REVISION_LABEL) == name]
    sizes = _sizes(ray) if ray is not None else {}
    going = any(_meta(one).get("deletionTimestamp") for one in (record, ray) if one is not None)
    return RevisionSeen(
        hash=name,
        record=data or {},
        pools={pool: _pool(sizes.get(pool, 0), [pod for pod in mine if _label(pod, POOL_LABEL) == pool]) for pool in names},
        exists=ray is not None,
        deleting=bool(going),
        # First why a model cannot be had: everything else follows from it.
        troubles=(*_model_troubles(mine, model), *_application_troubles(ray), *_pod_troubles(mine)),
        created=str(_meta(record).get("creationTimestamp", "")),
        hints=tuple(sorted({*_hints(mine), *_retries(ray)})),
    )


def _sizes(ray: Object) -> dict[str, int]:
    """What Serve is asked for in the live object."""
    try:
        config = json.loads((ray.get("spec") or {}).get("serveConfigV2") or "{}")
        return {one["name"]: sum(int(d["num_replicas"]) for d in one["deployments"]) for one in config.get("applications", ())}
    except (ValueError, KeyError, TypeError, AttributeError):
        # Somebody else wrote it: the next apply restores it.
        return {}


def _pool(size: int, pods: Sequence[Object]) -> PoolSeen:
    """A worker that was asked to go listens, and is Ready, until its last answer has ended."""
    staying = [pod for pod in pods if not _meta(pod).get("deletionTimestamp")]
    ready = sum(_condition(pod, "Ready") for pod in staying)
    leaving = sum(bool(_meta(pod).get("deletionTimestamp")) and not _over(pod) for pod in pods)
    return PoolSeen(size=size, ready=min(ready, size), draining=leaving + max(0, ready - size))


def _over(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _condition(one: Object, kind: str) -> bool:
    listed = (one.get("status") or {}).get("conditions") or ()
    return any(condition.get("type") == kind and condition.get("status") == "True" for condition in listed)


def _application_troubles(ray: Object | None) -> Iterable[Trouble]:
    for name, one in _applications(ray):
        if one.get("status") in _FAILED_APPLICATION:
            told = _replicas_words(one) or one.get("message") or one.get("status")
            yield Trouble("EngineFailed", _short(f"pool {name}: {told}"))


def _retries(ray: Object | None) -> Iterable[str]:
    """Workers that failed to start and that Serve starts again, many times over."""
    for name, one in _applications(ray):
        if one.get("status") not in _FAILED_APPLICATION and (words := _replicas_words(one)):
            yield _short(f"pool {name}: a worker failed to start and is started again: {words}")


def _applications(ray: Object | None) -> Iterable[tuple[str, Mapping[str, Any]]]:
    status = (ray or {}).get("status") or {}
    for part in ("activeServiceStatus", "pendingServiceStatus"):
        yield from sorted(((status.get(part) or {}).get("applicationStatuses") or {}).items())


def _replicas_words(application: Mapping[str, Any]) -> str:
    """What the last replica said that could not start: the last line of a traceback that names an exception."""
    for _, one in sorted((application.get("serveDeploymentStatuses") or {}).items()):
        message = str(one.get("message") or "")
        if "failed to start" in message:
            lines = [line.strip() for line in message.splitlines() if line.strip()]
            named = [line for line in lines if _EXCEPTION.match(line)]
            return (named or lines)[-1]
    return ""


def _model_troubles(pods: Iterable[Object], model: _Model) -> Iterable[Trouble]:
    for pod in pods:
        found = looks.fetch_trouble(pod, model.source, model.secret, models.secret_keys(model.source))
        if found is not None and _meta(pod).get("name") not in model.going:
            yield Trouble(found[0], _short(f"pod {_meta(pod).get('name')}: {found[1]}"))


def _hints(pods: Iterable[Object]) -> Iterable[str]:
    for pod in pods:
        for one in (pod.get("status") or {}).get("conditions") or ():
            if one.get("type") == "PodScheduled" and one.get("status") == "False":
                yield _short(f"no node for a pod of pool {_label(pod, POOL_LABEL) or 'head'}: {one.get('message', '')}")


def _pod_troubles(pods: Iterable[Object]) -> Iterable[Trouble]:
    for pod in pods:
        status = pod.get("status") or {}
        for one in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
            waiting = (one.get("state") or {}).get("waiting") or {}
            told_better = one.get("name") == models.CONTAINER and waiting.get("reason") in looks.SAID_BY_FETCHERS
            if waiting.get("reason") in _STUCK and not told_better:
                told = f"pod {_meta(pod).get('name')}, container {one.get('name')}: {waiting.get('message') or waiting['reason']}"
                yield Trouble(str(waiting["reason"]), _short(told))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_MESSAGE else f"{line[: _MOST_MESSAGE - 3]}..."


def _routers(deployments: Sequence[Object], pods: Iterable[Object]) -> RoutersSeen:
    if not deployments:
        return RoutersSeen()
    one = deployments[0]
    status = one.get("status") or {}
    return RoutersSeen(
        exists=True,
        desired=int((one.get("spec") or {}).get("replicas") or 0),
        ready=int(status.get("readyReplicas") or 0),
        updated=int(status.get("updatedReplicas") or 0),
        troubles=tuple(_pod_troubles(pod for pod in pods if _label(pod, COMPONENT_LABEL) == "router")),
    )


def _progress(document: Object) -> Progress | None:
    kept = (document.get("status") or {}).get("rollout") or {}
    try:
        return Progress(str(kept["target"]), int(kept["ready"]), datetime.fromisoformat(kept["since"]).timestamp())
    except (KeyError, TypeError, ValueError):
        return None
