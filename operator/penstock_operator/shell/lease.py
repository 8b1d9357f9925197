"""Leadership by a Lease, as a state machine.

Promise: a process that may write has renewed the Lease less than `renew_within_s` ago by its own clock, and another takes it
only after it has seen the Lease unchanged for `duration_s` by its own; so two never write at once as long as no clock runs
`duration_s / renew_within_s` times faster than another. Wall-clock times in the Lease are for people.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from penstock_operator.shell.ports import Object


@dataclass(frozen=True, slots=True)
class Timing:
    """The defaults of Kubernetes' own controllers: a new writer in at most duration + retry."""

    duration_s: float = 15.0
    renew_within_s: float = 10.0
    retry_s: float = 2.0

    @property
    def write_timeout_s(self) -> float:
        """What a leader sends in its last moment has ended before the next leader begins."""
        return self.duration_s - self.renew_within_s


@dataclass(frozen=True, slots=True)
class Standing:
    """What this process knows of the Lease."""

    seen: Object | None = None
    seen_at_s: float = 0.0  # when it last changed, by our clock
    renewed_at_s: float | None = None  # when we began our last write that held


def observed(standing: Standing, lease: Object | None, now_s: float) -> Standing:
    if _record(standing.seen) == _record(lease) and standing.seen_at_s > 0:
        return replace(standing, seen=lease)
    return replace(standing, seen=lease, seen_at_s=now_s)


def decide(standing: Standing, me: str, timing: Timing, now_s: float) -> Literal["create", "renew", "take", "wait"]:
    """What to do about the Lease just observed."""
    if standing.seen is None:
        return "create"
    holder = _record(standing.seen).get("holderIdentity") or ""
    if holder == me:
        return "renew"
    if not holder or now_s - standing.seen_at_s >= timing.duration_s:
        return "take"
    return "wait"


def wrote(standing: Standing, lease: Object, began_s: float, now_s: float) -> Standing:
    """Our write held. It counts from its beginning: the server may have taken it any time since."""
    return Standing(seen=lease, seen_at_s=now_s, renewed_at_s=began_s)


def may_write(standing: Standing, timing: Timing, now_s: float) -> bool:
    return standing.renewed_at_s is not None and now_s - standing.renewed_at_s < timing.renew_within_s


def body(standing: Standing, namespace: str, name: str, me: str, timing: Timing, wall_s: float) -> dict[str, Any]:
    """The Lease with us as its holder; at the version seen, so that of two who try one is refused."""
    old = _record(standing.seen)
    stamp = datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    mine = old.get("holderIdentity") == me
    meta: dict[str, Any] = {"namespace": namespace, "name": name}
    if standing.seen is not None:
        meta["resourceVersion"] = standing.seen["metadata"]["resourceVersion"]
    spec = {
        "holderIdentity": me,
        "leaseDurationSeconds": max(1, round(timing.duration_s)),
        "acquireTime": old.get("acquireTime", stamp) if mine else stamp,
        "renewTime": stamp,
        "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if mine or not old else 1),
    }
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}


def released(standing: Standing, namespace: str, name: str) -> dict[str, Any] | None:
    """The Lease with nobody as its holder: the next leader need not wait for it to run out."""
    if standing.seen is None or standing.renewed_at_s is None:
        return None
    meta = {"namespace": namespace, "name": name, "resourceVersion": standing.seen["metadata"]["resourceVersion"]}
    spec = {**_record(standing.seen), "holderIdentity": "", "leaseDurationSeconds": 1}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}


def _record(lease: Object | None) -> Mapping[str, Any]:
    return (lease or {}).get("spec") or {}
