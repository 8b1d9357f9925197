"""What the shell needs from outside: an API server, a planner, clocks.

Promise: values and Protocols only; the real client and the tests' fake pass one contract suite.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from penstock_operator.plan.looks import Look
from penstock_operator.plan.names import FIELD_MANAGER, SERVICE_LABEL
from penstock_operator.plan.reconcile import Plan

Object = Mapping[str, Any]
Id = tuple[str, str, str]  # kind, namespace, name

__all__ = [
    "FIELD_MANAGER",
    "SERVICE_LABEL",
    "Api",
    "ApiFault",
    "Clock",
    "Fence",
    "Id",
    "Key",
    "Kind",
    "Listing",
    "Object",
    "Offered",
    "Planner",
    "Refused",
    "Unreachable",
]


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """An LLMService."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """A namespaced kind and where the API server keeps it. Optional ones may not be served."""

    api_version: str
    kind: str
    plural: str
    optional: bool = False

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.api_version.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list gave, or a page of it, and the version of the whole cluster that it shows."""

    items: Sequence[Object]
    version: str


@dataclass(frozen=True, slots=True)
class Offered:
    """What the cluster has beyond the kinds that every cluster has."""

    kinds: frozenset[str] = frozenset()
    storage_class: bool = False


class ApiFault(Exception):
    """The API server did not do as asked. Its message holds no secret: it is the server's own reason, cut short."""


class Refused(ApiFault):
    """The API server answered with an error."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message[:400]}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s


class Unreachable(ApiFault):
    """No answer, half an answer, or none in time: whether a write took place is unknown."""


class Api(Protocol):
    """A thin client; every failure is an ApiFault and nothing is retried here."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None: ...

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> Listing: ...

    def pages(self, kind: Kind, namespace: str | None, selector: str = "", *, bare: bool = False) -> AsyncIterator[Listing]:
        """As `list`, a part at a time, all of one version; bare: the metadata only."""
        ...

    async def apply(self, kind: Kind, body: Object, *, subresource: str = "") -> Object:
        """Server-side apply as FIELD_MANAGER, force: what the body names is ours, what it does not name is not."""
        ...

    async def create(self, kind: Kind, body: Object) -> Object: ...

    async def replace(self, kind: Kind, body: Object) -> Object:
        """Refused with 409 if the object is no longer at the body's resourceVersion."""
        ...

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str, version: str, propagation: str) -> bool:
        """False if there is nothing of that name; refused with 409 if it has another uid or has changed since `version`."""
        ...

    async def served(self, api_version: str) -> frozenset[str]:
        """The kinds of a group version; none where the server does not know it."""
        ...

    async def storage_class(self) -> bool:
        """Whether a default StorageClass exists."""
        ...


class Planner(Protocol):
    """The pure half."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Every kind a plan may hold or read, in no order."""
        ...

    @property
    def watched(self) -> tuple[Kind, ...]:
        """Those of `kinds` whose events wake a reconcile at once; the others are looked at by the resync."""
        ...

    def looks(self, document: Object, children: Sequence[Object]) -> Sequence[Look]:
        """What a plan wants to know beyond objects; the answers are given to `plan` among the children."""
        ...

    def plan(self, document: Object, children: Sequence[Object], offered: Offered, now_s: float) -> Plan: ...


# May this process write now? Asked in the same step as the write is sent.
Fence = Callable[[], bool]
Clock = Callable[[], float]
