"""The life of `lives` without a process: the product's plan and reconciler on the API server in memory, a fault on the way.

Promise: pure of time and threads, so that a trial costs a fraction of a second and is the same every time. What it cannot show is
what the fake cannot: admission, keyed lists, the wire, Kopf. Those are shown by `crash`.
"""

import asyncio
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kube.fake_api import FakeApi
from kube.lives import manifest
from kube.rays import image_of, pod_status, pods_of

from penstock_operator.operate import ClusterPlanner
from penstock_operator.plan import OperatorSettings
from penstock_operator.shell.figures import Figures
from penstock_operator.shell.kinds import LLM_SERVICE, id_of, service_of
from penstock_operator.shell.ports import ApiFault, Key, Kind, Listing, Object, Offered, Refused, Unreachable
from penstock_operator.shell.reconciler import Reconciler
from penstock_operator.shell.sight import Sight
from penstock_operator.shell.snapshot import pack

KEY = Key("n", "chat")
POD, DEPLOYMENT = Kind("v1", "Pod", "pods"), Kind("apps/v1", "Deployment", "deployments")
RAY = Kind("ray.io/v1", "RayService", "rayservices", optional=True)
_MOST_TURNS = 80


class Killed(Exception):
    """The operator's process is no more."""


@dataclass
class Slip:
    """What goes wrong: at write or look number `at`, or with event number `at`."""

    what: str = ""  # before, after, lost, drop, stale, or a status
    at: int = 0
    times: int = 1
    on: str = "write"  # or look

    def strikes(self, number: int) -> bool:
        return self.at <= number < self.at + self.times


@dataclass
class FaultyApi:
    """The API server in memory as an operator with bad luck sees it."""

    real: FakeApi
    slip: Slip
    wrote: int = 0
    looked: int = 0
    struck: int = 0
    history: list[dict[Any, Any]] = field(default_factory=list)

    def _strikes(self, number: int) -> bool:
        hit = self.slip.strikes(number)
        self.struck += hit
        return hit

    def _before(self, on: str, number: int) -> None:
        if self.slip.on == on and self.slip.what not in ("drop", "stale", "after", "lost") and self._strikes(number):
            if self.slip.what == "before":
                raise Killed
            raise Refused(int(self.slip.what), "Fault", "a fault of the test", 0.0)

    async def _write(self, act: Callable[[], Any]) -> Any:
        self.wrote += 1
        self._before("write", self.wrote)
        made = await act()
        if self.slip.on == "write" and self.slip.what in ("after", "lost") and self._strikes(self.wrote):
            raise Killed if self.slip.what == "after" else Unreachable("half an answer")
        return made

    def _look(self) -> FakeApi:
        """Now, or as it was at the beginning of a life long ago."""
        self.looked += 1
        self._before("look", self.looked)
        stale = self.slip.what == "stale" and self._strikes(self.looked)
        if not stale or not self.history:
            return self.real
        old = FakeApi(self.history[max(0, len(self.history) - 12)], self.real.kinds, now=self.real.now)
        old.now = max((int(one.body["metadata"]["resourceVersion"]) for one in old.stored.values()), default=0)
        return old

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return await self._look().get(kind, namespace, name)

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> Listing:
        return await self._look().list(kind, namespace, selector)

    async def pages(self, kind: Kind, namespace: str | None, selector: str = "", *, bare: bool = False) -> Any:
        async for page in self._look().pages(kind, namespace, selector, bare=bare):
            yield page

    async def apply(self, kind: Kind, body: Object, *, subresource: str = "") -> Object:
        made: Object = await self._write(lambda: self.real.apply(kind, body, subresource=subresource))
        return made

    async def create(self, kind: Kind, body: Object) -> Object:
        made: Object = await self._write(lambda: self.real.create(kind, body))
        return made

    async def delete(self, kind: Kind, namespace: str, name: str, **asked: Any) -> bool:
        gone: bool = await self._write(lambda: self.real.delete(kind, namespace, name, **asked))
        return gone


@dataclass
class Rehearsal:
    slip: Slip
    api: FakeApi = field(default_factory=lambda: FakeApi(kinds=frozenset({"RayService"})))
    planner: ClusterPlanner = field(default_factory=lambda: ClusterPlanner(OperatorSettings()))
    seen: dict[Any, tuple[str, Object]] = field(default_factory=dict)  # what events have told of
    told: int = 0
    restarts: int = 0
    now_s: float = 1_800_000_000.0

    def __post_init__(self) -> None:
        self.faulty = FaultyApi(self.api, self.slip)
        self._restart()

    def _restart(self) -> None:
        self.restarts += 1
        api: Any = self.faulty
        self.one = Reconciler(api, self.planner, lambda: True, Figures(), self._wall, "me", Sight(api))
        self.one.offered = Offered(frozenset({"RayService"}))
        self.fresh = False

    def _wall(self) -> float:
        return self.now_s

    def live(self) -> list[dict[str, Any]]:
        """The end of each stage."""
        return asyncio.run(self._live())

    async def _live(self) -> list[dict[str, Any]]:
        ends = []
        for stage in ("create", "scale", "rollout"):
            self.api.apply_as("person", LLM_SERVICE, _document(stage))
            # Ten resyncs of the last one, of which none writes.
            await self._settle(40 if stage == "rollout" else 9)
            ends.append(self.state())
        return ends

    async def _settle(self, turns: int) -> None:
        quiet = 0
        for turn in range(_MOST_TURNS):
            before = len(self.api.writes)
            await self._turn(resync=turn % 4 == 3)
            self._hands()
            self._events()
            if self.slip.what == "stale":
                self.faulty.history.append(copy.deepcopy(self.api.stored))
            quiet = quiet + 1 if len(self.api.writes) == before else 0
            if quiet >= turns:
                return
        raise AssertionError(f"no end: {self.api.writes[-10:]}")

    async def _turn(self, resync: bool) -> None:
        self.now_s += 1
        try:
            if resync or not self.fresh:
                await self.one.sight.everything([LLM_SERVICE, *self.one.kinds], ["n"])
                self.fresh = True
            await self.one.reconcile(KEY)
        except ApiFault:
            pass  # the queue tries again
        except Killed:
            self._restart()

    def _events(self) -> None:
        """Of the watched kinds, as a watch tells them: not of what happened before the operator's start."""
        watched = (LLM_SERVICE, *self.planner.watched)
        now = {}
        for one in self.api.shown():
            kind = next((kind for kind in watched if kind.kind == one["kind"]), None)
            if kind is not None:
                now[id_of(kind, one["metadata"])] = (kind, one["metadata"]["resourceVersion"], one)
        for name, (kind, version, one) in now.items():
            if self.seen.get(name, ("", None))[0] != version and not self._dropped():
                self.one.sight.snapshot.offer(name, version, service_of(kind, one["metadata"]), pack(one))
        for name in [name for name in self.seen if name not in now]:
            if not self._dropped():
                self.one.sight.snapshot.gone(name, str(self.api.now))
        self.seen = {name: (version, one) for name, (_, version, one) in now.items()}

    def _dropped(self) -> bool:
        self.told += 1
        hit = self.slip.what == "drop" and self.slip.strikes(self.told)
        self.faulty.struck += hit
        return hit

    def _hands(self) -> None:
        """KubeRay, the Deployment controller, kubelets and the garbage collector, at once."""
        rays = [one for one in self.api.shown() if one["kind"] == "RayService"]
        wanted = {name: (one, made) for one in rays for name, made in pods_of(one).items()}
        for path in [path for path in self.api.stored if path[0] == "Pod" and path[2] not in wanted]:
            del self.api.stored[path]
            self.api.now += 1
        for name, (ray, made) in wanted.items():
            if ("Pod", "n", name) not in self.api.stored:
                body = {
                    **made["body"],
                    "metadata": {**made["body"]["metadata"], "namespace": "n"},
                    "status": pod_status(image_of(ray)),
                }
                self.api.apply_as("hands", POD, {k: v for k, v in body.items() if k != "status"})
                self.api.apply_as("hands", POD, {"metadata": body["metadata"], "status": body["status"]}, "status")
        for one in self.api.shown():
            if one["kind"] == "Deployment":
                number = one["spec"]["replicas"]
                status = {"readyReplicas": number, "updatedReplicas": number}
                if one.get("status") != status:
                    meta = {"namespace": "n", "name": one["metadata"]["name"]}
                    self.api.apply_as("hands", DEPLOYMENT, {"metadata": meta, "status": status}, "status")

    def state(self) -> dict[str, Any]:
        uid = self.api.stored["LLMService", "n", "chat"].body["metadata"]["uid"]
        found = {}
        for one in self.api.shown():
            if one["kind"] != "Event":
                text = json.dumps(_bare(one)).replace(uid, "OWNER")
                found[f"{one['kind']}/{one['metadata']['name']}"] = json.loads(text)
        return found


def _document(stage: str) -> dict[str, Any]:
    body = manifest(stage)
    body["metadata"]["namespace"] = "n"
    return body


def _bare(node: Any) -> Any:
    given = {"uid", "resourceVersion", "generation", "managedFields", "lastTransitionTime", "since"}
    if isinstance(node, dict):
        return {key: _bare(value) for key, value in node.items() if key not in given}
    return [_bare(one) for one in node] if isinstance(node, list) else node
