"""Whether the watches have fallen silent, by what a look at everything shows. Pure.

Promise: a change that the next look still finds untold after `grace_s` makes its watch count as silent, until that watch tells
something again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock_operator.shell.ports import Id

# An event may be on its way while a list is read; a live watch delivers in well under this.
GRACE_S = 20.0


@dataclass(slots=True)
class Told:
    """What the watches have told, and what they owe."""

    grace_s: float = GRACE_S
    versions: dict[Id, str] = field(default_factory=dict)
    owed: dict[Id, float] = field(default_factory=dict)  # since when
    silent: set[str] = field(default_factory=set)  # kinds

    def event(self, name: Id, version: str, gone: bool) -> None:
        self.silent.discard(name[0])
        self.owed.pop(name, None)
        if gone:
            self.versions.pop(name, None)
        else:
            self.versions[name] = version

    def look(self, found: Mapping[Id, str], now_s: float) -> set[str]:
        """Compares a list of the watched kinds; gives the kinds that have newly fallen silent."""
        # Kopf never tells of what went while it was reconnecting. The comparison of lists does, and no restart would help.
        for name in [name for name in self.versions if name not in found]:
            del self.versions[name]
        wrong = {name for name, version in found.items() if self.versions.get(name) != version}
        self.owed = {name: self.owed.get(name, now_s) for name in wrong}
        late = {name[0] for name, since in self.owed.items() if now_s - since >= self.grace_s}
        fallen = late - self.silent
        self.silent |= late
        return fallen
