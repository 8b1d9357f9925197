"""The status of an LLMService, from what was seen.

Promise: pure; a condition's time of transition changes with its status only, so that a status that says the same is the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from penstock_operator.api import LLMService
from penstock_operator.plan import objectives
from penstock_operator.plan.names import GRPC_PORT, HTTP_PORT, Identity
from penstock_operator.plan.observed import Observed, Trouble
from penstock_operator.plan.rollout import Step

Conditions = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether the spec can be carried out, and where its rollout stands. `step` is None where nothing is carried out."""

    service: LLMService | None
    generation: int
    refusal: Trouble | None  # Invalid, NotBuilt, Paused, KubeRayMissing
    step: Step | None
    target: str
    desired: Mapping[str, int]
    durable: bool


def stamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def status(previous: Mapping[str, Any], identity: Identity, seen: Observed, verdict: Judgement, now_s: float) -> dict[str, Any]:
    pools = _pools(previous, seen, verdict)
    found = _judge(pools, seen, verdict)
    made: dict[str, Any] = {
        "observedGeneration": verdict.generation,
        "phase": _phase(found, verdict),
        "endpoint": {part: f"{identity.name}.{identity.namespace}.svc:{port}" for part, port in _PORTS.items()},
        "revision": _revision(previous, seen, verdict),
        "pools": pools,
        "columns": {one["name"]: f"{one['ready']}/{one['desired']}" for one in pools} | objectives.column(seen.attainment),
        "conditions": _conditions(previous, found, verdict.generation, now_s),
    }
    if seen.downloads:
        made["download"] = objectives.download(seen.downloads)
    if seen.attainment is not None and seen.attainment.shares:
        made["slo"] = objectives.shares(seen.attainment)
    if verdict.service is not None:
        made["model"] = verdict.service.spec.model.served_name
    elif previous.get("model"):
        made["model"] = previous["model"]
    if verdict.step is not None:
        progress = verdict.step.progress
        made["rollout"] = {"target": progress.target, "ready": progress.ready, "since": stamp(progress.since_s)}
    elif previous.get("rollout"):
        made["rollout"] = previous["rollout"]
    return made


_PORTS = {"grpc": GRPC_PORT, "http": HTTP_PORT}


def _pools(previous: Mapping[str, Any], seen: Observed, verdict: Judgement) -> list[dict[str, Any]]:
    """Of all revisions; without a spec that can be carried out, desired stays what it was."""
    before = {one["name"]: one.get("desired", 0) for one in previous.get("pools") or ()}
    desired = dict(verdict.desired) if verdict.step is not None else before
    names = [
        *desired,
        *sorted({pool for one in seen.revisions for pool, at in one.pools.items() if at.ready or at.draining} - set(desired)),
    ]
    listed = []
    for name in names:
        parts = [one.pools[name] for one in seen.revisions if name in one.pools]
        ready, draining = sum(part.ready for part in parts), sum(part.draining for part in parts)
        listed.append({"name": name, "desired": desired.get(name, 0), "ready": ready, "draining": draining})
    return listed


def _revision(previous: Mapping[str, Any], seen: Observed, verdict: Judgement) -> dict[str, str]:
    """Current is what serves: the target once its rollout is done, before that what served before."""
    before = (previous.get("revision") or {}).get("current", "")
    if verdict.step is None:
        return {"current": before, "updated": (previous.get("revision") or {}).get("updated", "")}
    there = {one.hash for one in seen.revisions if one.exists}
    current = verdict.target if verdict.step.done or before not in there else before
    return {"current": current, "updated": verdict.target}


@dataclass(frozen=True, slots=True)
class _Found:
    status: str
    reason: str
    message: str = ""


def _judge(pools: Sequence[Mapping[str, Any]], seen: Observed, verdict: Judgement) -> dict[str, _Found]:
    accepted = _Found("False", verdict.refusal.reason, verdict.refusal.message) if verdict.refusal else _Found("True", "Accepted")
    made = {
        "Accepted": accepted,
        "Ready": _ready(pools, seen),
        "Progressing": _progressing(seen, verdict, accepted),
        "Degraded": _degraded(pools, seen, verdict, accepted),
        "SLOMet": _Found(*objectives.met(verdict.service, seen.attainment)),
        "Autoscaling": _autoscaling(verdict),
    }
    if verdict.step is not None:
        told = "heads keep no state: a head that is lost takes the running answers of its revision with it; give the cluster a "
        made["Durable"] = (
            _Found("True", "Volume") if verdict.durable else _Found("False", "NoStorageClass", f"{told}default StorageClass")
        )
    return made


def _autoscaling(verdict: Judgement) -> _Found:
    mode = verdict.service.spec.autoscaling.mode if verdict.service is not None else "off"
    if mode == "off":
        return _Found("False", "Off", "autoscaling.mode is off: sizes are the spec's replicas")
    return _Found("False", "NotBuilt", f"autoscaling.mode {mode} is not built yet: sizes stay as they are")


def _ready(pools: Sequence[Mapping[str, Any]], seen: Observed) -> _Found:
    if seen.routers.ready < 1:
        reason = seen.routers.troubles[0] if seen.routers.troubles else Trouble("NoRouter", "no router is ready")
        return _Found("False", reason.reason, reason.message)
    # A pool that grows, or has lost some, still serves: how many there should be is told by the columns and by Progressing.
    for one in pools:
        if one["desired"] and not one["ready"]:
            return _Found("False", "WorkersMissing", f"pool {one['name']}: 0 of {one['desired']} workers are ready")
    if not any(one["ready"] for one in pools):
        return _Found("False", "WorkersMissing", "no worker is ready")
    return _Found(
        "True",
        "Serving",
        f"{seen.routers.ready} routers, " + ", ".join(f"{p['ready']} of {p['desired']} {p['name']}" for p in pools),
    )


def _progressing(seen: Observed, verdict: Judgement, accepted: _Found) -> _Found:
    step = verdict.step
    if step is None:
        return _Found("False", accepted.reason, "the children stay as they are")
    target = seen.revision(verdict.target)
    hints = target.hints if target is not None else ()
    if step.trouble is not None:
        told = "; ".join((f"revision {verdict.target}: {step.trouble.message}", *hints))
        return _Found("False", step.trouble.reason, told)
    if step.done:
        return _Found("False", "Complete", f"revision {verdict.target} serves")
    if seen.downloads:
        return _Found("True", "FetchingModel", "; ".join((step.waiting, objectives.download_text(seen.downloads), *hints)))
    return _Found("True", "RollingOut", "; ".join((step.waiting, *hints)))


def _degraded(pools: Sequence[Mapping[str, Any]], seen: Observed, verdict: Judgement, accepted: _Found) -> _Found:
    if accepted.status == "False" and accepted.reason != "Paused":
        return _Found("True", accepted.reason, accepted.message)
    step = verdict.step
    if step is not None and step.trouble is not None:
        return _Found("True", step.trouble.reason, step.trouble.message)
    if seen.routers.troubles and seen.routers.ready < seen.routers.desired:
        return _Found("True", seen.routers.troubles[0].reason, seen.routers.troubles[0].message)
    return _Found("False", "AsExpected")


def _phase(found: Mapping[str, _Found], verdict: Judgement) -> str:
    if verdict.refusal is not None:
        return {"Paused": "Paused", "Invalid": "Invalid"}.get(verdict.refusal.reason, "Refused")
    if found["Degraded"].status == "True":
        return "Degraded"
    if found["Ready"].status != "True":
        return "Fetching" if found["Progressing"].reason == "FetchingModel" else "Starting"
    return "Updating" if found["Progressing"].status == "True" else "Ready"


def _conditions(previous: Mapping[str, Any], found: Mapping[str, _Found], generation: int, now_s: float) -> list[dict[str, Any]]:
    before = {one.get("type"): one for one in previous.get("conditions") or ()}
    listed = []
    # What is not judged now (Durable, while nothing is carried out) stays as it was.
    kept = [dict(one) for kind, one in before.items() if kind not in found]
    for kind, one in found.items():
        old = before.get(kind) or {}
        since = old.get("lastTransitionTime") if old.get("status") == one.status else None
        listed.append(
            {
                "type": kind, "status": one.status, "reason": one.reason, "message": one.message,
                "lastTransitionTime": since or stamp(now_s), "observedGeneration": generation,
            }
        )  # fmt: skip
    return [*listed, *kept]
