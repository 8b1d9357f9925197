"""What is known of every LLMService and its children, fed by lists, watches and our own writes. Pure.

Promise: of two states of an object the newer is kept, whichever arrives first, and a deletion is a state; so a reading that is
late does no harm, and one that never arrives is found by the next `compare` with a list. Objects are kept packed: two thousand
services have forty thousand of them, and one unpacked takes ten times its text.
"""

import json
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock_operator.shell.ports import FIELD_MANAGER, Id, Key, Object

Versions = Mapping[Id, tuple[str, Key]]  # resource version, and the service it belongs to


def pack(obj: Object) -> bytes:
    """Without what other managers own: nobody here asks for it."""
    meta = obj["metadata"]
    ours = [entry for entry in meta.get("managedFields") or () if entry.get("manager") == FIELD_MANAGER]
    kept = {**obj, "metadata": {**meta, "managedFields": ours}}
    return zlib.compress(json.dumps(kept, separators=(",", ":")).encode(), 1)


def unpack(packed: bytes) -> Object:
    found: dict[str, Any] = json.loads(zlib.decompress(packed))
    return found


@dataclass(frozen=True, slots=True)
class _Held:
    version: int
    key: Key
    packed: bytes


@dataclass(slots=True)
class Snapshot:
    _held: dict[str, dict[Id, _Held]] = field(default_factory=dict)  # by kind
    _of: dict[Key, set[Id]] = field(default_factory=dict)
    _stale: dict[Id, tuple[int, Key]] = field(default_factory=dict)  # the newer version that a list told of
    _stale_of: dict[Key, set[Id]] = field(default_factory=dict)
    # Deletions since the last look and since the one before: an answer that is older than that is no longer on its way.
    _gone: dict[Id, int] = field(default_factory=dict)
    _gone_before: dict[Id, int] = field(default_factory=dict)

    def offer(self, name: Id, version: str, key: Key | None, packed: bytes) -> set[Key]:
        """A state that was read; gives the services for which it is news. Without a key it belongs to none."""
        at = int(version)
        if at <= self._known(name):
            return set()
        touched = self._drop(name, at)
        if key is None:
            return touched
        self._held.setdefault(name[0], {})[name] = _Held(at, key, packed)
        self._of.setdefault(key, set()).add(name)
        return touched | {key}

    def gone(self, name: Id, version: str) -> set[Key]:
        """It was deleted at this version."""
        at = int(version)
        self._gone[name] = max(at, self._gone.get(name, 0))
        return self._drop(name, at) if self.version(name) <= at else set()

    def compare(self, kind: str, namespace: str | None, found: Versions, version: str) -> set[Key]:
        """A whole list, as of `version`: what differs is out of date, what is not in it is gone. Gives the services concerned."""
        touched, held = set(), self._held.get(kind, {})
        for name, (seen, key) in found.items():
            if int(seen) > self._known(name):
                touched |= {key} if name not in held else {key, held[name].key}
                self._due(name, int(seen), key)
        listed = (name for name in held if namespace in (None, name[1]))
        return touched | self._absent([name for name in listed if name not in found], version)

    def only(self, kinds: Collection[str]) -> set[Key]:
        """No other kind is served any more."""
        gone = [name for kind, held in self._held.items() if kind not in kinds for name in held]
        return set().union(*(self._drop(name, self.version(name)) for name in gone))

    def read(self, key: Key, kind: str, found: Collection[Id], version: str) -> None:
        """A list of this service's objects of a kind, as of `version`, all of them offered before."""
        for name in [name for name in self.stale(key) if name[0] == kind and name not in found]:
            self._fresh_at(name, int(version))
        self._absent([name for name in self._of.get(key, ()) if name[0] == kind and name not in found], version)

    def missing(self, key: Key, name: Id, asked_at: int) -> None:
        """It was asked for when it was held at the version `asked_at`, and is not there; what came since is newer."""
        if self.version(name) == asked_at:
            self._drop(name, max(asked_at, self._stale.get(name, (0, key))[0]))

    def looked(self) -> None:
        """A look at every kind is over."""
        self._gone_before, self._gone = self._gone, {}

    def stale(self, key: Key) -> frozenset[Id]:
        """What of this service has a newer state than is held."""
        return frozenset(self._stale_of.get(key, ()))

    def version(self, name: Id) -> int:
        """0 for what is not held."""
        old = self._held.get(name[0], {}).get(name)
        return old.version if old else 0

    def of(self, key: Key) -> list[Object]:
        """The service and its children, in an order that does not change."""
        return [unpack(self._held[name[0]][name].packed) for name in sorted(self._of.get(key, ()))]

    def keys(self, kind: str) -> set[Key]:
        return {held.key for held in self._held.get(kind, {}).values()}

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def _known(self, name: Id) -> int:
        """The newest state that is known of, there or gone."""
        return max(self.version(name), self._gone.get(name, 0), self._gone_before.get(name, 0))

    def _absent(self, names: Iterable[Id], version: str) -> set[Key]:
        """Not in a list as of `version`: what is newer than the list came after it."""
        at, touched = int(version), set()
        for name in names:
            if self.version(name) <= at:
                touched |= self._drop(name, at)
        return touched

    def _drop(self, name: Id, at: int) -> set[Key]:
        self._fresh_at(name, at)
        old = self._held.get(name[0], {}).pop(name, None)
        if old is None:
            return set()
        _remove(self._of, old.key, name)
        return {old.key}

    def _due(self, name: Id, at: int, key: Key) -> None:
        """There is a state as new as `at` that is not held."""
        if at > self._stale.get(name, (0, key))[0]:
            self._fresh_at(name, at)
            self._stale[name] = (at, key)
            self._stale_of.setdefault(key, set()).add(name)

    def _fresh_at(self, name: Id, at: int) -> None:
        """What is held of it is as new as `at`."""
        version, key = self._stale.get(name, (at + 1, None))
        if version <= at and key is not None:
            del self._stale[name]
            _remove(self._stale_of, key, name)


def _remove(index: dict[Key, set[Id]], key: Key, name: Id) -> None:
    index[key].discard(name)
    if not index[key]:
        del index[key]
