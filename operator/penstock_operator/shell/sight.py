"""The snapshot and the API server together: what is read, and when.

Promise: everything is read in full once, and after that only what has changed; a service is read whole where its plan would take
something away. An answer that is late cannot undo a newer one.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field

from penstock_operator.shell.kinds import LLM_SERVICE, id_of, service_of
from penstock_operator.shell.ports import SERVICE_LABEL, Api, Id, Key, Kind, Object
from penstock_operator.shell.snapshot import Snapshot, pack


@dataclass(slots=True)
class Sight:
    api: Api
    snapshot: Snapshot = field(default_factory=Snapshot)
    # Kinds and namespaces that have been read in full.
    _whole: set[tuple[str, str | None]] = field(default_factory=set)
    # News that a look has found and not yet told: what fails in its middle must not lose it, for it is no news to the next.
    _untold: set[Key] = field(default_factory=set)

    def offer(self, kind: Kind, obj: Object) -> bool:
        """Whether it was news."""
        meta = obj["metadata"]
        return bool(self.snapshot.offer(id_of(kind, meta), meta["resourceVersion"], service_of(kind, meta), pack(obj)))

    async def everything(self, kinds: Collection[Kind], namespaces: Collection[str]) -> tuple[set[Key], dict[Id, str]]:
        """The services with something new, and the version of every object there is."""
        served = {kind.kind for kind in kinds}
        self._untold |= self.snapshot.only(served)
        self._whole = {one for one in self._whole if one[0] in served}
        versions: dict[Id, str] = {}
        for kind in kinds:
            for namespace in namespaces or (None,):
                found = await self._look(kind, namespace)
                versions |= {name: version for name, (version, _) in found.items()}
        self.snapshot.looked()
        touched, self._untold = self._untold, set()
        return touched, versions

    async def _look(self, kind: Kind, namespace: str | None) -> dict[Id, tuple[str, Key]]:
        bare = (kind.kind, namespace) in self._whole
        found: dict[Id, tuple[str, Key]] = {}
        version = "0"
        selector = "" if kind == LLM_SERVICE else SERVICE_LABEL
        async for page in self.api.pages(kind, namespace, selector, bare=bare):
            version = page.version
            for item in page.items:
                meta = item["metadata"]
                key = service_of(kind, meta)
                if key is None:
                    continue
                name = id_of(kind, meta)
                found[name] = (meta["resourceVersion"], key)
                if not bare:
                    self._untold |= self.snapshot.offer(name, meta["resourceVersion"], key, pack(item))
        self._untold |= self.snapshot.compare(kind.kind, namespace, found, version)
        self._whole.add((kind.kind, namespace))
        return found

    async def current(self, key: Key, kinds: Collection[Kind]) -> None:
        """Reads what of a service is known to be out of date."""
        by_name = {kind.kind: kind for kind in (LLM_SERVICE, *kinds)}
        stale = [name for name in sorted(self.snapshot.stale(key)) if name[0] in by_name]
        await asyncio.gather(*(self.one(by_name[name[0]], key, name) for name in stale))

    async def whole(self, key: Key, kinds: Collection[Kind]) -> None:
        """Reads all of a service."""
        document = self.one(LLM_SERVICE, key, (LLM_SERVICE.kind, key.namespace, key.name))
        await asyncio.gather(document, *(self._kind(kind, key) for kind in kinds))

    async def one(self, kind: Kind, key: Key, name: Id) -> None:
        """Reads one object, which may be gone."""
        asked_at = self.snapshot.version(name)
        found = await self.api.get(kind, name[1], name[2])
        if found is None:
            self.snapshot.missing(key, name, asked_at)
        else:
            self.offer(kind, found)

    async def _kind(self, kind: Kind, key: Key) -> None:
        listed = await self.api.list(kind, key.namespace, f"{SERVICE_LABEL}={key.name}")
        for item in listed.items:
            self.offer(kind, item)
        self.snapshot.read(key, kind.kind, {id_of(kind, item["metadata"]) for item in listed.items}, listed.version)
