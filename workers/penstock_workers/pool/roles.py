"""The role that routers prefer this worker for, and who may change it.

Promise: pure. Of the routers joined only the one with the lowest id is obeyed, whatever order its words come in: an assignment
counts where its epoch is beyond the role's, so that one meant for an earlier role is not taken for the present one's. The role
stays when its router leaves; every change has a higher epoch than all before it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

ROLES = ("prefill", "decode", "both")


@dataclass(frozen=True, slots=True)
class Held:
    """The role and how often it has changed."""

    role: str
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Assignment:
    """One more than the epoch that its router saw: of two routers that decide from the same report, the second comes late."""

    router_id: str
    role: str
    epoch: int


def assign(held: Held, assignment: Assignment, joined: Iterable[str]) -> tuple[Held, str]:
    """The role held from now on, and why the assignment was not taken; empty: it was."""
    lowest = min((router for router in joined if router), default="")
    if assignment.role not in ROLES:
        return held, "unknown role"
    if assignment.router_id != lowest:
        return held, "not the lowest router"
    if assignment.epoch <= held.epoch:
        return held, "stale epoch"
    if assignment.role == held.role:
        return held, "no change"
    return Held(assignment.role, assignment.epoch), ""
