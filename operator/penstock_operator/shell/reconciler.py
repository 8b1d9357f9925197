"""One reconcile: look, think, write what differs.

Promise: objects in the plan's order, then deletions, then status, then Events; the first refusal ends it, and the next one
begins from a new look. Nothing is written that the cluster already holds, that belongs to somebody else, or without the
Lease. A crash anywhere leaves what the next look finishes.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from penstock_operator.plan.reconcile import Event, Plan, Ref
from penstock_operator.shell import drift
from penstock_operator.shell.figures import Figures
from penstock_operator.shell.kinds import EVENT, LLM_SERVICE
from penstock_operator.shell.ports import SERVICE_LABEL, Api, ApiFault, Clock, Fence, Key, Kind, Object, Offered, Planner, Refused

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another process may be writing: stop in the middle, without another word."""


class NotOurs(ApiFault):
    """An object of the name we need belongs to somebody else."""


@dataclass(slots=True)
class Reconciler:
    api: Api
    planner: Planner
    fence: Fence
    figures: Figures
    wall: Clock
    instance: str
    offered: Offered = field(default_factory=Offered)
    # What an apply returned, where the server keeps it in another form than the body's; lost at a restart, then made again.
    applied: dict[Key, dict[tuple[str, str], str]] = field(default_factory=dict)

    async def reconcile(self, key: Key) -> float | None:
        """Seconds until it wants to look again, if time alone may change the plan."""
        document = await self.api.get(LLM_SERVICE, key.namespace, key.name)
        if document is None:
            self._forget(key)
            return None
        if document["metadata"].get("deletionTimestamp"):
            # Children have owner references: the garbage collector takes them, with their own grace.
            return None
        children = await self._children(key)
        plan = self.planner.plan(document, children, self.offered, self.wall())
        if (document.get("spec") or {}).get("paused") is True:
            plan = Plan((), (), plan.status, plan.events, plan.again_in_s)
        await self._carry_out(key, document, children, plan)
        self.figures.pool_sizes(key, plan.status.get("pools", ()))
        return plan.again_in_s

    async def _children(self, key: Key) -> Sequence[Object]:
        kinds = [kind for kind in self.planner.kinds if not kind.optional or kind.kind in self.offered.kinds]
        lists = [self.api.list(kind, key.namespace, f"{SERVICE_LABEL}={key.name}") for kind in kinds]
        return [child for found in await asyncio.gather(*lists) for child in found]

    async def _carry_out(self, key: Key, document: Object, children: Sequence[Object], plan: Plan) -> None:
        live = {(child["kind"], child["metadata"]["name"]): child for child in children}
        uid = document["metadata"]["uid"]
        for body in plan.objects:
            await self._apply(key, uid, body, live.get(_id(body)))
        for ref in plan.deletions:
            await self._delete(key, ref, live.get((ref.kind, ref.name)))
        kept = {_id(body) for body in plan.objects} | {_id(document)}
        self.applied[key] = {name: seen for name, seen in self.applied.get(key, {}).items() if name in kept}
        await self._status(key, document, plan.status)
        for event in plan.events:
            await self._post(key, document, event)

    async def _apply(self, key: Key, uid: str, body: Object, live: Object | None) -> None:
        kind = self._kind(body["apiVersion"], body["kind"])
        if live is None:
            # Not among the service's children: it does not exist, or it lacks our label, or it is somebody else's.
            live = await self.api.get(kind, key.namespace, body["metadata"]["name"])
        if live is not None and not _ours(live, body, uid):
            raise NotOurs(f"{kind.kind} {body['metadata']['name']} exists and does not belong to LLMService {key}")
        if live is not None and live["metadata"].get("deletionTimestamp"):
            raise Refused(409, "Terminating", f"{kind.kind} {body['metadata']['name']} is being deleted")
        await self._write(key, kind, body, live, "")

    async def _status(self, key: Key, document: Object, status: Mapping[str, Any]) -> None:
        meta = {"namespace": key.namespace, "name": key.name}
        body = {"apiVersion": LLM_SERVICE.api_version, "kind": LLM_SERVICE.kind, "metadata": meta, "status": status}
        await self._write(key, LLM_SERVICE, body, document, "status")

    async def _write(self, key: Key, kind: Kind, body: Object, live: Object | None, subresource: str) -> None:
        memory = self.applied.setdefault(key, {})
        if live is not None and (
            drift.settled(body, live, subresource) or memory.get(_id(body)) == drift.digest(body, live, subresource)
        ):
            return
        self._check_fence()
        written = await self.api.apply(kind, body, subresource=subresource)
        self.figures.writes.labels(kind.kind).inc()
        memory[_id(body)] = drift.digest(body, written, subresource)

    async def _delete(self, key: Key, ref: Ref, live: Object | None) -> None:
        if live is None or live["metadata"].get("deletionTimestamp"):
            return
        self._check_fence()
        kind = self._kind(ref.api_version, ref.kind)
        uid = live["metadata"]["uid"]
        if await self.api.delete(kind, key.namespace, ref.name, uid=uid, propagation=ref.propagation):
            self.figures.writes.labels(kind.kind).inc()

    async def _post(self, key: Key, document: Object, event: Event) -> None:
        """Named by what it says and the version it was said of: said twice after a crash, it is there once."""
        meta = document["metadata"]
        said = f"{meta['uid']} {meta['resourceVersion']} {event.reason} {event.message}"
        name = f"{key.name[:200]}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"
        stamp = datetime.fromtimestamp(self.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        about = {"apiVersion": LLM_SERVICE.api_version, "kind": LLM_SERVICE.kind, "namespace": key.namespace, "name": key.name}
        body = {
            "apiVersion": "v1", "kind": "Event", "metadata": {"namespace": key.namespace, "name": name},
            "involvedObject": {**about, "uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
            "type": event.type, "reason": event.reason, "message": event.message[:1024],
            "firstTimestamp": stamp, "lastTimestamp": stamp, "count": 1,
            "source": {"component": "penstock-operator"}, "reportingComponent": "penstock-operator",
            "reportingInstance": self.instance,
        }  # fmt: skip
        self._check_fence()
        try:
            await self.api.create(EVENT, body)
        except Refused as error:
            if error.status != 409:
                # Events are for people; the status says the same to programs, and it is written.
                log.warning("event %s of %s: %s", event.reason, key, error)
            return
        self.figures.writes.labels("Event").inc()

    def _check_fence(self) -> None:
        if not self.fence():
            raise LeaseLost

    def _kind(self, api_version: str, name: str) -> Kind:
        for kind in self.planner.kinds:
            if (kind.api_version, kind.kind) == (api_version, name):
                return kind
        raise LookupError(f"the plan holds a {name} of {api_version}, which the planner does not list among its kinds")

    def _forget(self, key: Key) -> None:
        self.applied.pop(key, None)
        self.figures.forget(key)


def _id(body: Object) -> tuple[str, str]:
    return body["kind"], body["metadata"]["name"]


def _ours(live: Object, body: Object, uid: str) -> bool:
    """By owner where the body has owners, else by label: a child of a deleted service of this name is not ours."""
    owners = body["metadata"].get("ownerReferences")
    if owners:
        mine = {owner["uid"] for owner in owners} | {uid}
        return any(owner.get("uid") in mine for owner in live["metadata"].get("ownerReferences") or ())
    label = (body["metadata"].get("labels") or {}).get(SERVICE_LABEL)
    return label is not None and (live["metadata"].get("labels") or {}).get(SERVICE_LABEL) == label
