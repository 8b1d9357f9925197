"""An API server in memory, behind the operator's `Api`.

Promise: passes the same contract suite as the real one. What it cannot show: lists are atomic (no merge by key), there is no
schema, no defaulting, no admission, no RBAC, no watch; tests of those need the real one.
"""

import copy
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock_operator.plan.names import FIELD_MANAGER
from penstock_operator.shell.ports import Kind, Listing, Object, Refused

Path = tuple[str, ...]
_PAGE = 2
_SYSTEM = {"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "deletionTimestamp"}


@dataclass
class _Stored:
    body: dict[str, Any]
    owners: dict[tuple[str, str], set[Path]] = field(default_factory=dict)  # (manager, subresource) -> leaves


@dataclass
class FakeApi:
    stored: dict[tuple[str, str, str], _Stored] = field(default_factory=dict)
    kinds: frozenset[str] = frozenset()
    default_class: bool = False
    writes: list[tuple[str, str, str]] = field(default_factory=list)  # verb, kind, name
    now: int = 0  # the version of the last write

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        found = self.stored.get((kind.kind, namespace, name))
        return None if found is None else _shown(found)

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> Listing:
        found = [
            _shown(found)
            for (name, where, _), found in sorted(self.stored.items())
            if name == kind.kind and namespace in (None, where) and _selected(found.body, selector)
        ]
        return Listing(found, str(self.now))

    async def pages(self, kind: Kind, namespace: str | None, selector: str = "", *, bare: bool = False) -> AsyncIterator[Listing]:
        whole = await self.list(kind, namespace, selector)
        for first in range(0, max(1, len(whole.items)), _PAGE):
            page = whole.items[first : first + _PAGE]
            yield Listing([{"metadata": one["metadata"]} if bare else one for one in page], whole.version)

    async def apply(self, kind: Kind, body: Object, *, subresource: str = "") -> Object:
        return self.apply_as(FIELD_MANAGER, kind, body, subresource)

    def apply_as(self, manager: str, kind: Kind, body: Object, subresource: str = "") -> Object:
        name = (kind.kind, body["metadata"]["namespace"], body["metadata"]["name"])
        found = self.stored.get(name)
        if found is None and subresource:
            raise Refused(404, "NotFound", f"{name[2]} not found")
        made = found is None
        found = found or self.stored.setdefault(name, self._new(kind, body))
        before = copy.deepcopy((found.body, found.owners))
        given = {path: value for path, value in _leaves(body) if path[0] != "status" or subresource}
        theirs = {path for who, paths in found.owners.items() if who != (manager, subresource) for path in paths}
        for path in found.owners.get((manager, subresource), set()) - set(given) - theirs:
            _remove(found.body, path)
        for path, value in given.items():
            _put(found.body, path, value)
            for who, paths in found.owners.items():
                if who != (manager, subresource) and before[0] is not None and _value(before[0], path) != value:
                    paths.discard(path)
        found.owners[manager, subresource] = set(given)
        self.writes.append(("patch", *name[::2]))
        if made or (found.body, found.owners) != before:
            self._touch(found, before[0])
        return _shown(found)

    async def create(self, kind: Kind, body: Object) -> Object:
        name = (kind.kind, body["metadata"]["namespace"], body["metadata"]["name"])
        if name in self.stored:
            raise Refused(409, "AlreadyExists", f"{name[2]} already exists")
        found = self.stored[name] = self._new(kind, body)
        for path, value in _leaves(body):
            _put(found.body, path, value)
        self.writes.append(("create", *name[::2]))
        return _shown(found)

    async def replace(self, kind: Kind, body: Object) -> Object:
        name = (kind.kind, body["metadata"]["namespace"], body["metadata"]["name"])
        found = self.stored.get(name)
        if found is None:
            raise Refused(404, "NotFound", f"{name[2]} not found")
        if body["metadata"].get("resourceVersion") not in (None, found.body["metadata"]["resourceVersion"]):
            raise Refused(409, "Conflict", "the object has been modified")
        before = copy.deepcopy(found.body)
        for key in [key for key in found.body if key not in ("metadata", "apiVersion", "kind")]:
            del found.body[key]
        for path, value in _leaves(body):
            _put(found.body, path, value)
        self.writes.append(("update", *name[::2]))
        if found.body != before:
            self._touch(found, before)
        return _shown(found)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str, version: str, propagation: str) -> bool:
        found = self.stored.get((kind.kind, namespace, name))
        if found is None:
            return False
        if (found.body["metadata"]["uid"], found.body["metadata"]["resourceVersion"]) != (uid, version):
            raise Refused(409, "Conflict", f"{name} has another uid or resourceVersion")
        self.now += 1
        del self.stored[kind.kind, namespace, name]
        self.writes.append(("delete", kind.kind, name))
        return True

    async def served(self, api_version: str) -> frozenset[str]:
        return self.kinds

    async def storage_class(self) -> bool:
        return self.default_class

    def shown(self) -> Sequence[Object]:
        """Everything, as it would be read."""
        return [_shown(found) for _, found in sorted(self.stored.items(), key=lambda entry: entry[0])]

    def _next(self) -> str:
        self.now += 1
        return str(self.now)

    def _new(self, kind: Kind, body: Object) -> _Stored:
        meta = {"name": body["metadata"]["name"], "namespace": body["metadata"]["namespace"], "uid": str(uuid.uuid4())}
        version = self._next()
        return _Stored(
            {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {**meta, "resourceVersion": version, "generation": 1}}
        )

    def _touch(self, found: _Stored, before: dict[str, Any]) -> None:
        found.body["metadata"]["resourceVersion"] = self._next()
        if found.body.get("spec") != before.get("spec") and "spec" in before:
            found.body["metadata"]["generation"] += 1


def _shown(found: _Stored) -> dict[str, Any]:
    shown = copy.deepcopy(found.body)
    entries = []
    for (manager, subresource), paths in sorted(found.owners.items()):
        fields: dict[str, Any] = {}
        for path in paths:
            node = fields
            for step in path:
                node = node.setdefault(f"f:{step}", {})
        entry = {"manager": manager, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields}
        entries.append({**entry, **({"subresource": subresource} if subresource else {})})
    if entries:
        shown["metadata"]["managedFields"] = entries
    return shown


def _leaves(body: Any, at: Path = ()) -> list[tuple[Path, Any]]:
    leaves: list[tuple[Path, Any]] = []
    for key, value in body.items():
        path = (*at, key)
        if path in (("apiVersion",), ("kind",)) or (at == ("metadata",) and key in _SYSTEM):
            continue
        leaves += _leaves(value, path) if isinstance(value, dict) and value else [(path, copy.deepcopy(value))]
    return leaves


def _value(body: dict[str, Any], path: Path) -> Any:
    node: Any = body
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
    return node


def _put(body: dict[str, Any], path: Path, value: Any) -> None:
    for step in path[:-1]:
        body = body.setdefault(step, {})
    body[path[-1]] = value


def _remove(body: dict[str, Any], path: Path) -> None:
    for step in path[:-1]:
        body = body.get(step, {})
    body.pop(path[-1], None)


def _selected(body: dict[str, Any], selector: str) -> bool:
    labels = body["metadata"].get("labels") or {}
    key, equals, value = selector.partition("=")
    return not selector or (labels.get(key) == value if equals else key in labels)
