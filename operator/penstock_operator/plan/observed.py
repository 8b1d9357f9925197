"""What was seen of one LLMService and its children.

Promise: values only, made by `read`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the cluster offers."""

    kinds: frozenset[str] = frozenset()  # optional kinds that are served, such as PodMonitor
    storage_class: bool = False  # a default StorageClass exists, or the settings name one


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a revision cannot serve: a fact about its pods or its application, worth a person's attention."""

    reason: str  # CamelCase
    message: str


@dataclass(frozen=True, slots=True)
class Download:
    """A pod that fetches its model. `total_bytes` is 0 where nothing is known."""

    done_bytes: int = 0
    total_bytes: int = 0
    waiting: bool = False  # another pod fetches it into the same volume


@dataclass(frozen=True, slots=True)
class Attained:
    """The share of requests of a class that met an objective, ttft or tpot."""

    service_class: str
    objective: str
    share: float


@dataclass(frozen=True, slots=True)
class Attainment:
    """What Prometheus said. `fault` is why it said nothing."""

    shares: tuple[Attained, ...] = ()
    fault: str = ""


@dataclass(frozen=True, slots=True)
class PoolSeen:
    """One pool of one revision. `ready` never counts more replicas than were asked for."""

    size: int
    ready: int = 0
    draining: int = 0


@dataclass(frozen=True, slots=True)
class RevisionSeen:
    hash: str
    record: Mapping[str, Any]  # what was frozen when the revision was made
    pools: Mapping[str, PoolSeen] = field(default_factory=dict)
    exists: bool = True  # its RayService is there
    deleting: bool = False  # its RayService or its record is going away
    troubles: tuple[Trouble, ...] = ()
    created: str = ""  # RFC 3339
    hints: tuple[str, ...] = ()  # what pods wait for that may pass by itself, such as a node


@dataclass(frozen=True, slots=True)
class RoutersSeen:
    exists: bool = False
    desired: int = 0
    ready: int = 0
    updated: int = 0
    troubles: tuple[Trouble, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the rollout to `target` had come, and since when; kept in the status, so that a restarted operator knows."""

    target: str
    ready: int
    since_s: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Observed:
    revisions: tuple[RevisionSeen, ...] = ()
    routers: RoutersSeen = RoutersSeen()
    progress: Progress | None = None
    cluster: Cluster = Cluster()
    # Every child, by (apiVersion, kind, name): what is no longer wanted is deleted.
    children: frozenset[tuple[str, str, str]] = frozenset()
    downloads: tuple[Download, ...] = ()
    attainment: Attainment | None = None  # None: no Prometheus is configured

    def revision(self, name: str) -> RevisionSeen | None:
        return next((one for one in self.revisions if one.hash == name), None)
