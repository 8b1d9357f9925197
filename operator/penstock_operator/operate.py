"""The operator whole: the pure plan and the shell that carries it out.

Promise: nothing is decided here.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from penstock_operator.plan import Cluster, OperatorSettings, Plan, read, reconcile
from penstock_operator.plan.looks import Look, looks
from penstock_operator.plan.permissions import CHILDREN
from penstock_operator.shell.main import Options
from penstock_operator.shell.main import main as run
from penstock_operator.shell.ports import Kind, Object, Offered


class ClusterPlanner:
    """The shell's Planner."""

    def __init__(self, settings: OperatorSettings) -> None:
        self._settings = settings
        self._kinds = tuple(Kind(one.api_version, one.kind, one.plural, one.optional) for one in CHILDREN)
        watched = {(one.api_version, one.kind) for one in CHILDREN if one.watched}
        self._watched = tuple(kind for kind in self._kinds if (kind.api_version, kind.kind) in watched)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return self._kinds

    @property
    def watched(self) -> tuple[Kind, ...]:
        return self._watched

    def looks(self, document: Object, children: Sequence[Object]) -> Sequence[Look]:
        return looks(document, children, self._settings)

    def plan(self, document: Object, children: Sequence[Object], offered: Offered, now_s: float) -> Plan:
        named = bool(self._settings.gcs_storage.storage_class)
        cluster = Cluster(offered.kinds, offered.storage_class or named)
        return reconcile(document, read(document, children, cluster), self._settings, now_s)


def operate(config: Path | None, namespaces: Sequence[str], listen: str) -> int:
    """No namespaces: all of them."""
    home = os.environ.get("POD_NAMESPACE", "default")
    return run(Options(home=home, namespaces=tuple(namespaces), listen=listen), config, ClusterPlanner)
