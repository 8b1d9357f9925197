"""What runs while this process leads: the watch, the workers, the resync.

Promise: they run together and end together; the first that fails ends the term, and the process with it. A restart costs less
than a state in which half of them run.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from penstock_operator.shell import watch
from penstock_operator.shell.access import Access
from penstock_operator.shell.figures import Figures
from penstock_operator.shell.health import Health
from penstock_operator.shell.kinds import LLM_SERVICE
from penstock_operator.shell.metered import Metered
from penstock_operator.shell.ports import Api, ApiFault, Clock, Id, Key, Kind, Offered, Planner, Refused
from penstock_operator.shell.reconciler import LeaseLost, Reconciler
from penstock_operator.shell.resync import Told
from penstock_operator.shell.sight import Sight
from penstock_operator.shell.work import Work

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Term:
    """One time of leading."""

    api: Api
    access: Access
    planner: Planner
    reconciler: Reconciler
    sight: Sight
    figures: Figures
    health: Health
    namespaces: Collection[str]
    clock: Clock
    u: Callable[[], float]
    workers: int
    resync_s: float
    work: Work = field(default_factory=Work)
    told: Told = field(default_factory=Told)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _busy: dict[Key, float] = field(default_factory=dict)
    _seen: asyncio.Event = field(default_factory=asyncio.Event)  # everything has been read once
    _first: set[Key] | None = None  # not yet looked at since the start

    async def run(self) -> None:
        """Until cancelled, or until one of the loops fails."""
        await self._begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._resync())
            for _ in range(self.workers):
                group.create_task(self._worker())

    def add(self, key: Key, at_s: float) -> None:
        self.work.add(key, at_s)
        self._wake.set()

    async def _watch(self) -> None:
        """Anew when a kind comes to be served, such as KubeRay's."""
        while True:
            kinds = self._present(self.planner.watched)
            task = asyncio.create_task(watch.run(self.access, [LLM_SERVICE, *kinds], self.namespaces, self._tell))
            try:
                while kinds == self._present(self.planner.watched):
                    done, _ = await asyncio.wait([task], timeout=1.0)
                    if done:
                        task.result()
            finally:
                task.cancel()
                await asyncio.wait([task])
            log.info("watching anew: the kinds served have changed")

    def _present(self, kinds: Collection[Kind]) -> list[Kind]:
        return [kind for kind in kinds if not kind.optional or kind.kind in self.reconciler.offered.kinds]

    def _tell(self, name: Id, version: str, gone: bool, key: Key, packed: bytes) -> None:
        self.told.event(name, version, gone)
        self.health.silent = set(self.told.silent)
        self.figures.events.labels(name[0]).inc()
        snapshot = self.sight.snapshot
        # What is no news is the echo of a write of ours, or of a list.
        for touched in snapshot.gone(name, version) if gone else snapshot.offer(name, version, key, packed):
            self.add(touched, self.clock())

    async def _worker(self) -> None:
        # A service of which half is known would get what it has a second time.
        await self._seen.wait()
        while True:
            now = self.clock()
            key = self.work.take(now)
            if key is None:
                await self._sleep(now)
                continue
            self._busy[key] = now
            try:
                await self._one(key)
            finally:
                del self._busy[key]
                self._note()

    async def _sleep(self, now: float) -> None:
        """Until the next key is due or one is added."""
        self._wake.clear()
        due = self.work.next_s()
        seconds = 60.0 if due is None else max(0.0, due - now)
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _one(self, key: Key) -> None:
        self._note()
        begun = self.clock()
        metered = Metered(self.reconciler.reconcile(key), time.thread_time)
        try:
            again_in_s = await metered
        except LeaseLost:
            raise
        except ApiFault as error:
            reason = error.reason if isinstance(error, Refused) else type(error).__name__
            self._failed(key, reason, str(error), begun, getattr(error, "retry_after_s", None) or 0.0)
        except Exception as error:
            log.exception("reconcile of %s", key)
            self._failed(key, type(error).__name__, "a fault of the operator", begun, 0.0)
        else:
            self.work.done(key, self.clock(), again_in_s)
            self.figures.reconcile.labels("done").observe(self.clock() - begun)
            if self._first is not None:
                self._first.discard(key)
        self.figures.cpu.observe(metered.seconds)
        self._wake.set()

    def _failed(self, key: Key, reason: str, message: str, begun: float, at_least_s: float) -> None:
        now = self.clock()
        delay = self.work.failed(key, now, self.u(), at_least_s)
        self.figures.faults.labels(reason).inc()
        self.figures.reconcile.labels("failed").observe(now - begun)
        log.warning("%s: %s; again in %.1f s", key, message, delay)
        if self._first is not None:
            self._first.discard(key)

    def _note(self) -> None:
        self.figures.queue.set(self.work.depth())
        self.health.busy_since_s = min(self._busy.values(), default=None)
        self.health.synced = self._first is not None and not self._first

    async def _resync(self) -> None:
        while True:
            begun = self.clock()
            try:
                await self._look()
            except ApiFault as error:
                log.warning("resync: %s", error)
                await asyncio.sleep(min(self.resync_s, 5.0))
                continue
            self.figures.resync.observe(self.clock() - begun)
            await asyncio.sleep(self.resync_s * (0.9 + 0.2 * self.u()))

    async def _look(self) -> None:
        await self._offers()
        touched, versions = await self.sight.everything([LLM_SERVICE, *self.reconciler.kinds], self.namespaces)
        now = self.clock()
        for key in touched:
            self.add(key, now)
        if self._first is None:
            self._first = set(touched)
        self._seen.set()
        watched = {kind.kind for kind in (LLM_SERVICE, *self._present(self.planner.watched))}
        for kind_name in self.told.look({name: version for name, version in versions.items() if name[0] in watched}, now):
            self.figures.missed.labels(kind_name).inc()
            log.error("the watch of %s owes events", kind_name)
        self.health.silent = set(self.told.silent)
        self._note()

    async def _begin(self) -> None:
        """What the cluster offers decides what is watched and wanted: nothing starts before it is known."""
        while True:
            try:
                return await self._offers()
            except ApiFault as error:
                log.warning("asking what the cluster offers: %s", error)
                await asyncio.sleep(0.5 + self.u())

    async def _offers(self) -> None:
        versions = sorted({kind.api_version for kind in self.planner.kinds if kind.optional})
        served = [await self.api.served(version) for version in versions]
        self.reconciler.offered = Offered(frozenset().union(*served), await self._storage_class())

    async def _storage_class(self) -> bool:
        """A Role of one namespace cannot allow this look; the settings can name a class instead."""
        try:
            return await self.api.storage_class()
        except Refused as error:
            if error.status != 403:
                raise
            log.debug("storage classes: %s", error)
            return False
