"""What KubeRay, the Deployment controller and kubelets would do, without a pod that runs.

Promise: a RayService gets a Ready pod for every replica that its Serve config asks for, a Deployment the status of one whose pods
are up; a smaller config takes pods away. Nothing else is written, and nothing twice.
"""

import asyncio
import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from kube.control import Cluster

from penstock_operator.plan.names import COMPONENT_LABEL, POOL_LABEL, REVISION_LABEL, SERVICE_LABEL

Object = dict[str, Any]
_RAYS, _DEPLOYMENTS = "/apis/ray.io/v1", "/apis/apps/v1"
_PLURAL = {_RAYS: "rayservices", _DEPLOYMENTS: "deployments"}
_SEVERAL = 16


@dataclass
class Hands:
    server: str
    token: str
    session: aiohttp.ClientSession
    latest: dict[str, Object | None] = field(default_factory=dict)  # None: deleted
    busy: set[str] = field(default_factory=set)
    pods: dict[str, set[str]] = field(default_factory=dict)  # uid of a RayService -> its pods
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_SEVERAL))
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def watch(self, root: str) -> None:
        """A list, then its watch, for ever."""
        url = f"{self.server}{root}/{_PLURAL[root]}"
        while True:
            async with self.session.get(url) as answer:
                if answer.status != 200:
                    # A kind is served a moment after it is established.
                    await asyncio.sleep(0.2)
                    continue
                found = await answer.json()
            for one in found["items"]:
                self._seen(root, one)
            params = {"watch": "1", "resourceVersion": found["metadata"]["resourceVersion"]}
            with contextlib.suppress(aiohttp.ClientError):
                async with self.session.get(url, params=params, timeout=aiohttp.ClientTimeout(total=None)) as stream:
                    async for line in stream.content:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            break
                        self._seen(root, event["object"], gone=event["type"] == "DELETED")

    def _seen(self, root: str, one: Object, gone: bool = False) -> None:
        meta = one["metadata"]
        path = f"{root}/namespaces/{meta['namespace']}/{_PLURAL[root]}/{meta['name']}"
        if gone:
            self.pods.pop(meta["uid"], None)
        self.latest[path] = None if gone else one
        if path not in self.busy and not gone:
            self.busy.add(path)
            task = asyncio.create_task(self._work(path))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _work(self, path: str) -> None:
        try:
            while (one := self.latest.pop(path, None)) is not None:
                async with self.room:
                    done = await (self._ray(path, one) if path.startswith(_RAYS) else self._deployment(path, one))
                if not done:
                    # Its namespace is new, or what was there before is not gone yet.
                    await asyncio.sleep(0.2)
                    self.latest.setdefault(path, one)
        finally:
            self.busy.discard(path)

    async def _deployment(self, path: str, one: Object) -> bool:
        number, generation = one["spec"]["replicas"], one["metadata"]["generation"]
        counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
        status = {"observedGeneration": generation, **dict.fromkeys(counts, number)}
        old = one.get("status") or {}
        return all(old.get(key) == value for key, value in status.items()) or await self._status(path, status)

    async def _ray(self, path: str, one: Object) -> bool:
        meta = one["metadata"]
        if meta.get("deletionTimestamp"):
            return True
        wanted = pods_of(one)
        mine = self.pods.setdefault(meta["uid"], set())
        done = True
        for name in sorted(set(wanted) - mine):
            done &= await self._pod(meta["namespace"], name, wanted[name], mine)
        for name in sorted(mine - set(wanted)):
            await self._ask("DELETE", f"/api/v1/namespaces/{meta['namespace']}/pods/{name}", {"gracePeriodSeconds": 0})
            mine.discard(name)
        applications = {name: {"status": "RUNNING"} for name in sorted({body["pool"] for body in wanted.values()})}
        status = {"serviceStatus": "Running", "activeServiceStatus": {"applicationStatuses": applications}}
        old = {key: (one.get("status") or {}).get(key) for key in status}
        return done and (old == status or await self._status(path, status))

    async def _pod(self, namespace: str, name: str, wanted: Object, mine: set[str]) -> bool:
        path = f"/api/v1/namespaces/{namespace}/pods"
        if await self._ask("POST", path, wanted["body"]) != 201:
            return False
        mine.add(name)
        return await self._status(f"{path}/{name}", pod_status(wanted["image"]))

    async def _status(self, path: str, status: Object) -> bool:
        # 404: it has gone meanwhile, and wants nothing more.
        return await self._ask("PATCH", f"{path}/status", {"status": status}) in (200, 404)

    async def _ask(self, method: str, path: str, body: Object) -> int:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            async with self.session.request(
                method, self.server + path, data=json.dumps(body), headers={"Content-Type": kind}
            ) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 0


def pod_status(image: str) -> Object:
    """An image that is called missing is."""
    there = "missing" not in image
    waits = {"waiting": {"reason": "ImagePullBackOff", "message": f"Back-off pulling image {image}"}}
    container = {"name": "c", "ready": there, "restartCount": 0, "image": image, "imageID": ""}
    return {
        "phase": "Running" if there else "Pending",
        "conditions": [{"type": "Ready", "status": "True" if there else "False"}],
        "containerStatuses": [{**container, "state": {"running": {}} if there else waits}],
    }


def image_of(ray: Object) -> str:
    groups = (ray["spec"].get("rayClusterConfig") or {}).get("workerGroupSpecs") or ()
    return str(groups[0]["template"]["spec"]["containers"][0].get("image", "")) if groups else ""


def pods_of(ray: Object) -> dict[str, Object]:
    meta = ray["metadata"]
    config = json.loads(ray["spec"].get("serveConfigV2") or "{}")
    labels, owner = meta.get("labels") or {}, {"apiVersion": "ray.io/v1", "kind": "RayService"}
    owner |= {"name": meta["name"], "uid": meta["uid"], "controller": True}
    made: dict[str, Object] = {}
    for application in config.get("applications", ()):
        pool = application["name"]
        for number in range(application["deployments"][0]["num_replicas"]):
            name = f"{meta['name']}-{pool}-{number}"
            mine = {key: labels.get(key, "") for key in (SERVICE_LABEL, REVISION_LABEL)}
            body = {
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": name, "labels": {**mine, POOL_LABEL: pool, COMPONENT_LABEL: "engine"}, "ownerReferences": [owner],
                },
                "spec": {
                    "containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 0,
                },
            }  # fmt: skip
            made[name] = {"pool": pool, "body": body, "image": image_of(ray)}
    return made


@contextlib.contextmanager
def hands(cluster: Cluster) -> Iterator[None]:
    """On an event loop and a thread of its own."""
    ends: list[Callable[[], object]] = []
    ready = threading.Event()

    async def work() -> None:
        over = asyncio.Event()
        ends.append(functools.partial(asyncio.get_running_loop().call_soon_threadsafe, over.set))
        headers = {"Authorization": f"Bearer {cluster.token}"}
        connector = aiohttp.TCPConnector(ssl=cluster.secure(), limit=0)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            mine = Hands(cluster.server, cluster.token, session)
            watches = [asyncio.create_task(mine.watch(root)) for root in (_RAYS, _DEPLOYMENTS)]
            ready.set()
            stop = asyncio.create_task(over.wait())
            done, _ = await asyncio.wait([stop, *watches], return_when=asyncio.FIRST_COMPLETED)
            tasks = [stop, *watches, *mine.tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()
        # A closed TLS connection lets go of its socket a few turns of the loop later.
        await asyncio.sleep(0.1)

    thread = threading.Thread(target=lambda: asyncio.run(work()), name="hands", daemon=True)
    thread.start()
    if not ready.wait(30):
        raise RuntimeError("the stand-in did not come up")
    try:
        yield
    finally:
        ends[0]()
        thread.join(10)
