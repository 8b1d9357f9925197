"""Whether an apply would change anything: pure, from the live object and the body that would be applied.

Promise: `settled` says yes only where the server holds every field of the body at the body's value, owned by us, and nothing
else owned by us; so a write it saves would have been without effect. One case cannot be told, for the server records a map
applied empty as it records an atomic field: where others filled such a map just as we now want it, we do not become owners too.
Where the server keeps a value in another form (a quantity, a default inside an atomic field) it says no, and `digest` of what an
apply returned tells the next look.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from penstock_operator.shell.ports import FIELD_MANAGER, Object

Fields = Mapping[str, Any]

# Identity, not fields: server-side apply records no owner for these.
_IDENTITY = ("apiVersion", "kind")


def owned(live: Object, subresource: str = "") -> Fields:
    """What we own of the object by apply, as the server records it (fieldsV1)."""
    for entry in live.get("metadata", {}).get("managedFields", ()):
        ours = entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
        if ours and entry.get("subresource", "") == subresource:
            fields: Fields = entry.get("fieldsV1", {})
            return fields
    return {}


def settled(body: Object, live: Object, subresource: str = "") -> bool:
    return _same(_content(body), live, owned(live, subresource))


def digest(body: Object, live: Object, subresource: str = "") -> str:
    """Of the body and of every live value that we own: equal digests mean that nothing of ours has changed."""
    fields = owned(live, subresource)
    text = json.dumps([body, fields, _pick(live, fields)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _content(body: Object) -> dict[str, Any]:
    content = {key: value for key, value in body.items() if key not in _IDENTITY}
    meta = {key: value for key, value in content.pop("metadata", {}).items() if key not in ("name", "namespace")}
    return {**content, "metadata": meta} if meta else content


def _same(want: Any, have: Any, fields: Fields) -> bool:
    names = [name for name in fields if name != "."]
    if not names:
        return bool(want == have)
    if isinstance(want, dict) and isinstance(have, dict):
        if {f"f:{key}" for key in want} != set(names):
            return False
        return all(_same(value, have.get(key), fields[f"f:{key}"]) for key, value in want.items())
    if isinstance(want, list) and isinstance(have, list):
        return len(want) == len(names) and all(_in(name, want, have, fields[name]) for name in names)
    return False


def _in(name: str, want: list[Any], have: list[Any], fields: Fields) -> bool:
    """One member of a list that is a set (`v:`) or keyed by fields (`k:`)."""
    sort, _, text = name.partition(":")
    try:
        member = json.loads(text)
    except ValueError:
        return False
    if sort == "v":
        return member in want and member in have
    wanted, found = _member(want, member), _member(have, member)
    return wanted is not None and found is not None and _same(wanted, found, fields)


def _member(items: list[Any], keys: Mapping[str, Any]) -> Any:
    for item in items:
        # A key that the body leaves to its default (a port's protocol) has no value there.
        if isinstance(item, dict) and all(item.get(key, value) == value for key, value in keys.items()):
            return item
    return None


def _pick(live: Any, fields: Fields) -> Any:
    """The live values under the fields that we own."""
    names = [name for name in fields if name != "."]
    if not names:
        return live
    if isinstance(live, dict):
        return {name[2:]: _pick(live.get(name[2:]), fields[name]) for name in names}
    if isinstance(live, list):
        picked = []
        for name in sorted(names):
            sort, _, text = name.partition(":")
            member = json.loads(text) if sort == "k" else None
            picked.append(
                _pick(_member(live, member), fields[name]) if isinstance(member, dict) else [name, text in _texts(live)]
            )
        return picked
    return live


def _texts(items: list[Any]) -> set[str]:
    return {json.dumps(item, separators=(",", ":"), sort_keys=True) for item in items}
