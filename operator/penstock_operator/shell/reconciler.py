"""One reconcile: look, think, write what differs.

Promise: objects in the plan's order, then deletions, then status, then Events; the first refusal ends it, and the next one
begins from a new look. Nothing is written that the cluster already holds, that belongs to somebody else, or without the
Lease. A plan that changes or deletes a child that exists is made on a fresh look, and a deletion is of exactly the version that
was seen; what the snapshot has late can at worst make a child that was just deleted, or say an old status for a moment. A crash
anywhere leaves what the next look finishes.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from penstock_operator.plan.reconcile import Event, Plan, Ref
from penstock_operator.shell import drift
from penstock_operator.shell.figures import Figures
from penstock_operator.shell.kinds import EVENT, LLM_SERVICE, id_of
from penstock_operator.shell.looker import Looker
from penstock_operator.shell.ports import SERVICE_LABEL, Api, ApiFault, Clock, Fence, Key, Kind, Object, Offered, Planner, Refused
from penstock_operator.shell.sight import Sight

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another process may be writing: stop in the middle, without another word."""


class NotOurs(ApiFault):
    """An object of the name we need belongs to somebody else."""


class OutOfDate(Exception):
    """A child that the plan would make is there: look anew before anything is written to it."""


@dataclass(slots=True)
class Reconciler:
    api: Api
    planner: Planner
    fence: Fence
    figures: Figures
    wall: Clock
    instance: str
    sight: Sight
    looker: Looker | None = None  # without one, plans get no answers beyond objects
    offered: Offered = field(default_factory=Offered)
    # What an apply returned, where the server keeps it in another form than the body's; lost at a restart, then made again.
    applied: dict[Key, dict[tuple[str, str], str]] = field(default_factory=dict)

    async def reconcile(self, key: Key) -> float | None:
        """Seconds until it wants to look again: at once after a write, later if time alone may change the plan."""
        await self.sight.current(key, self.kinds)
        seen = self.sight.snapshot.of(key)
        answers = await self._answers(key, seen)
        try:
            return await self._reconcile(key, seen, answers, fresh=False)
        except OutOfDate:
            await self.sight.whole(key, self.kinds)
            return await self._reconcile(key, self.sight.snapshot.of(key), answers, fresh=True)

    async def _answers(self, key: Key, seen: Sequence[Object]) -> Sequence[Object]:
        document = _document(seen)
        if self.looker is None or document is None:
            return ()
        asked = self.planner.looks(document, _children(seen))
        return await self.looker.ask(key.namespace, asked) if asked else ()

    @property
    def kinds(self) -> list[Kind]:
        """Those that are served."""
        return [kind for kind in self.planner.kinds if not kind.optional or kind.kind in self.offered.kinds]

    async def _reconcile(self, key: Key, seen: Sequence[Object], answers: Sequence[Object], fresh: bool) -> float | None:
        document = _document(seen)
        if document is None:
            self._forget(key)
            return None
        if document["metadata"].get("deletionTimestamp"):
            # Children have owner references: the garbage collector takes them, with their own grace.
            return None
        children = _children(seen)
        plan = self.planner.plan(document, [*children, *answers], self.offered, self.wall())
        if (document.get("spec") or {}).get("paused") is True:
            plan = Plan((), (), plan.status, plan.events, plan.again_in_s)
        wrote = await self._carry_out(key, document, children, plan, fresh)
        self.figures.pool_sizes(key, plan.status.get("pools", ()))
        return 0.0 if wrote else plan.again_in_s

    async def _carry_out(self, key: Key, document: Object, children: Sequence[Object], plan: Plan, fresh: bool) -> bool:
        """Whether the cluster has changed by it."""
        live = {_id(child): child for child in children}
        uid = document["metadata"]["uid"]
        changes = [body for body in plan.objects if not self._stands(key, body, live.get(_id(body)))]
        leaving = [(ref, live[ref.kind, ref.name]) for ref in plan.deletions if (ref.kind, ref.name) in live]
        leaving = [(ref, child) for ref, child in leaving if not child["metadata"].get("deletionTimestamp")]
        if not fresh and (leaving or any(_id(body) in live for body in changes)):
            raise OutOfDate
        wrote = False
        for body in changes:
            wrote |= await self._apply(key, uid, body, live.get(_id(body)), fresh)
        for ref, child in leaving:
            wrote |= await self._delete(key, ref, child)
        kept = {_id(body) for body in plan.objects} | {_id(document)}
        self.applied[key] = {name: seen for name, seen in self.applied.get(key, {}).items() if name in kept}
        wrote |= await self._status(key, document, plan.status)
        for event in plan.events:
            await self._post(key, document, event)
        return wrote

    async def _apply(self, key: Key, uid: str, body: Object, live: Object | None, fresh: bool) -> bool:
        kind = self._kind(body["apiVersion"], body["kind"])
        if live is None:
            # Not among the service's children: it does not exist, or it lacks our label, or it is somebody else's.
            live = await self.api.get(kind, key.namespace, body["metadata"]["name"])
            if live is not None and not fresh:
                raise OutOfDate
        if live is not None and not _ours(live, body, uid):
            raise NotOurs(f"{kind.kind} {body['metadata']['name']} exists and does not belong to LLMService {key}")
        if live is not None and live["metadata"].get("deletionTimestamp"):
            raise Refused(409, "Terminating", f"{kind.kind} {body['metadata']['name']} is being deleted")
        return await self._write(key, kind, body, live, "")

    async def _status(self, key: Key, document: Object, status: Mapping[str, Any]) -> bool:
        meta = {"namespace": key.namespace, "name": key.name}
        body = {"apiVersion": LLM_SERVICE.api_version, "kind": LLM_SERVICE.kind, "metadata": meta, "status": status}
        return await self._write(key, LLM_SERVICE, body, document, "status")

    def _stands(self, key: Key, body: Object, live: Object | None) -> bool:
        return self._settled(key, body, live, "") and not (live or {})["metadata"].get("deletionTimestamp")

    def _settled(self, key: Key, body: Object, live: Object | None, subresource: str) -> bool:
        if live is None:
            return False
        known = self.applied.get(key, {}).get(_id(body))
        return drift.settled(body, live, subresource) or (known is not None and known == drift.digest(body, live, subresource))

    async def _write(self, key: Key, kind: Kind, body: Object, live: Object | None, subresource: str) -> bool:
        if self._settled(key, body, live, subresource):
            return False
        self._check_fence()
        written = await self.api.apply(kind, body, subresource=subresource)
        self.figures.writes.labels(kind.kind).inc()
        self.applied.setdefault(key, {})[_id(body)] = drift.digest(body, written, subresource)
        self.sight.offer(kind, written)
        return live is None or bool(written["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"])

    async def _delete(self, key: Key, ref: Ref, live: Object) -> bool:
        self._check_fence()
        kind, meta = self._kind(ref.api_version, ref.kind), live["metadata"]
        asked = {"uid": meta["uid"], "version": meta["resourceVersion"], "propagation": ref.propagation}
        deleted = await self.api.delete(kind, key.namespace, ref.name, **asked)
        if deleted:
            self.figures.writes.labels(kind.kind).inc()
        # Gone, or going: which of both, a fresh look tells.
        await self.sight.one(kind, key, id_of(kind, meta))
        return deleted

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


def _document(seen: Sequence[Object]) -> Object | None:
    return next((one for one in seen if one["kind"] == LLM_SERVICE.kind), None)


def _children(seen: Sequence[Object]) -> list[Object]:
    return [one for one in seen if one["kind"] != LLM_SERVICE.kind]


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
