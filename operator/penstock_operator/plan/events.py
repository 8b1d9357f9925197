"""Kubernetes Events: what has changed since the last status, where a person would want to know.

Promise: pure; each change is told once, and a status that says the same tells nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock_operator.plan.rollout import Step


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event to post on the LLMService."""

    type: str  # Normal or Warning
    reason: str
    message: str


def events(previous: Mapping[str, Any], made: Mapping[str, Any], step: Step | None) -> tuple[Event, ...]:
    """From one status to the next. `step` is None where nothing is carried out."""
    was = {one.get("type"): (one.get("status"), one.get("reason")) for one in previous.get("conditions") or ()}
    now = {one["type"]: one for one in made["conditions"]}

    def turned(kind: str) -> bool:
        return kind in now and was.get(kind) != (now[kind]["status"], now[kind]["reason"])

    told = [*_accepted(was, now)] if turned("Accepted") else []
    told += [*_revisions(previous, made)] if step is not None else []
    if turned("Progressing") and step is not None:
        if step.trouble is not None:
            told.append(Event("Warning", step.trouble.reason, now["Progressing"]["message"]))
        elif step.done:
            told.append(Event("Normal", "RolloutComplete", f"revision {made['revision']['current']} serves"))
    told += [*_readiness(was, now), *_objectives(was, now)]
    told += [*_sizes(previous, made)] if step is not None else []
    if turned("Durable") and now["Durable"]["status"] == "False":
        told.append(Event("Warning", now["Durable"]["reason"], now["Durable"]["message"]))
    return tuple(told)


Was = Mapping[Any, tuple[Any, Any]]
Now = Mapping[str, Mapping[str, Any]]


def _accepted(was: Was, now: Now) -> tuple[Event, ...]:
    one = now["Accepted"]
    if one["status"] == "False":
        return (Event("Normal" if one["reason"] == "Paused" else "Warning", one["reason"], one["message"]),)
    if was.get("Accepted", ("",))[0] == "False":
        return (Event("Normal", "Accepted", f"no longer {was['Accepted'][1]}: the service is made as it is declared"),)
    return ()


def _revisions(previous: Mapping[str, Any], made: Mapping[str, Any]) -> tuple[Event, ...]:
    to, since = made["revision"]["updated"], (previous.get("revision") or {}).get("updated", "")
    return (Event("Normal", "RolloutStarted", f"to revision {to}" + (f" from {since}" if since else "")),) if to != since else ()


def _readiness(was: Was, now: Now) -> tuple[Event, ...]:
    before, after = was.get("Ready", ("",))[0], now["Ready"]
    if before == "True" and after["status"] == "False":
        return (Event("Warning", "NotReady", f"{after['reason']}: {after['message']}"),)
    return (Event("Normal", "Ready", after["message"]),) if before == "False" and after["status"] == "True" else ()


def _objectives(was: Was, now: Now) -> tuple[Event, ...]:
    before, after = was.get("SLOMet", ("",))[0], now["SLOMet"]
    if after["status"] == "False" and before != "False":
        return (Event("Warning", "SLOMissed", after["message"]),)
    return (Event("Normal", "SLOMet", after["message"]),) if after["status"] == "True" and before == "False" else ()


def _sizes(previous: Mapping[str, Any], made: Mapping[str, Any]) -> tuple[Event, ...]:
    """Of pools that were there before."""
    before = {one["name"]: one.get("desired") for one in previous.get("pools") or ()}
    changed = [
        f"pool {one['name']}: {before[one['name']]} -> {one['desired']} workers"
        for one in made["pools"]
        if one["name"] in before and before[one["name"]] != one["desired"]
    ]
    return (Event("Normal", "Resized", ", ".join(changed)),) if changed else ()
