"""One reconcile, without the cluster.

Promise: an LLMService with a fault changes no child; the plan lists what to apply in order, what to delete after it, and the
status to write last. A plan that was carried out, seen again, gives itself again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock_operator.api import LLMService, judge, unsupported
from penstock_operator.plan.desire import desire
from penstock_operator.plan.events import Event, events
from penstock_operator.plan.names import Identity
from penstock_operator.plan.observed import Object, Observed, Trouble
from penstock_operator.plan.permissions import CHILDREN
from penstock_operator.plan.render import render
from penstock_operator.plan.revision import revision_hash
from penstock_operator.plan.settings import OperatorSettings
from penstock_operator.plan.status import Judgement, status

__all__ = ["Event", "Plan", "Ref", "reconcile"]

_PRUNED = {(child.api_version, child.kind) for child in CHILDREN if child.pruned}
# RayServices first: a record or a volume that goes before its RayService would leave one that cannot be rendered.
_PRUNE_ORDER = ("RayService", "Deployment")
# Neither a log nor Prometheus tells of a change by itself.
_DOWNLOAD_EVERY_S = 5.0
_ATTAINMENT_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Ref:
    """A child to delete. `propagation` is the API server's propagationPolicy."""

    api_version: str
    kind: str
    name: str
    propagation: str = "Background"


@dataclass(frozen=True, slots=True)
class Plan:
    """`objects` are applied in order, stopping at the first refusal; then `deletions`; then `status` is written if it differs."""

    objects: tuple[Mapping[str, Any], ...]
    deletions: tuple[Ref, ...]
    status: Mapping[str, Any]
    events: tuple[Event, ...]
    again_in_s: float | None  # when time alone may change the plan


def reconcile(document: Object, seen: Observed, settings: OperatorSettings, now_s: float) -> Plan:
    meta, previous = document.get("metadata") or {}, document.get("status") or {}
    identity = Identity(str(meta.get("name", "")), str(meta.get("namespace") or "default"), str(meta.get("uid", "")))
    generation = int(meta.get("generation") or 0)
    service, refusal = _accept(document, seen)
    if service is None or refusal is not None:
        verdict = Judgement(service, generation, refusal, None, "", {}, durable=False)
        return _plan((), (), previous, identity, seen, verdict, now_s, None)
    desired, step = desire(service, seen, settings, now_s)
    objects = render(desired, settings)
    durable = any("storage" in one.record for one in desired.revisions if one.hash == revision_hash(service.spec))
    verdict = Judgement(service, generation, None, step, revision_hash(service.spec), desired.pools, durable)
    again = None if step.done or step.trouble else max(1.0, settings.progress_deadline_s - (now_s - step.progress.since_s))
    return _plan(objects, _prune(seen, objects), previous, identity, seen, verdict, now_s, again)


def _accept(document: Object, seen: Observed) -> tuple[LLMService | None, Trouble | None]:
    """The service, and why it cannot be carried out."""
    service, faults = judge(document)
    if service is None:
        return None, Trouble("Invalid", "; ".join(map(str, faults)))
    refusals = unsupported(service.spec, "cluster")
    if refusals:
        return service, Trouble("NotBuilt", "; ".join(map(str, refusals)))
    if service.spec.paused:
        return service, Trouble("Paused", "spec.paused is true")
    if "RayService" not in seen.cluster.kinds:
        return service, Trouble("KubeRayMissing", "the cluster has no kind RayService: install KubeRay 1.6")
    return service, None


def _prune(seen: Observed, objects: Sequence[Mapping[str, Any]]) -> tuple[Ref, ...]:
    kept = {(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in objects}
    extra = [one for one in seen.children - kept if one[:2] in _PRUNED]
    order = {kind: place for place, kind in enumerate(_PRUNE_ORDER)}
    return tuple(Ref(*one) for one in sorted(extra, key=lambda one: (order.get(one[1], len(order)), one)))


def _plan(
    objects: tuple[Mapping[str, Any], ...],
    deletions: tuple[Ref, ...],
    previous: Mapping[str, Any],
    identity: Identity,
    seen: Observed,
    verdict: Judgement,
    now_s: float,
    again_in_s: float | None,
) -> Plan:
    made = status(previous, identity, seen, verdict, now_s)
    return Plan(objects, deletions, made, events(previous, made, verdict.step), _sooner(again_in_s, seen))


def _sooner(again_in_s: float | None, seen: Observed) -> float | None:
    asked = [_DOWNLOAD_EVERY_S] * bool(seen.downloads) + [_ATTAINMENT_EVERY_S] * (seen.attainment is not None)
    return min([*asked, *([again_in_s] if again_in_s is not None else [])], default=None)
