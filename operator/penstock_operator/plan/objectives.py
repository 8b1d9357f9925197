"""Parts of the status that come from looks: how far models are, whether objectives are met.

Promise: pure; figures are rounded so that a status changes when there is news, not with every sample.
"""

from collections.abc import Sequence
from typing import Any

from penstock_operator.api import LLMService
from penstock_operator.plan.observed import Attainment, Download

_GIB = 2**30
_STEP = 5  # percent: so many writes of a status does a download cost


def download(found: Sequence[Download]) -> dict[str, Any]:
    """Of the pod that has least; those that wait for another's fetch have what it has."""
    least = _least(found)
    percent = _percent(least)
    return {
        "pods": len(found),
        "percent": percent,
        "doneBytes": least.total_bytes * percent // 100,
        "totalBytes": least.total_bytes,
    }


def download_text(found: Sequence[Download]) -> str:
    least, waiting = _least(found), sum(one.waiting for one in found)
    shared = f" ({waiting} of them wait for another's, into the same volume)" if waiting else ""
    far = f"{_percent(least)} % of {least.total_bytes / _GIB:.1f} GiB" if least.total_bytes else "not begun"
    return f"{len(found)} pods fetch the model{shared}: {far}"


def _least(found: Sequence[Download]) -> Download:
    return min(found, key=lambda one: one.done_bytes / one.total_bytes if one.total_bytes else 0.0)


def _percent(one: Download) -> int:
    whole = min(100, 100 * one.done_bytes // one.total_bytes) if one.total_bytes else 0
    return whole - whole % _STEP


def met(service: LLMService | None, found: Attainment | None) -> tuple[str, str, str]:
    """Status, reason and message of SLOMet."""
    if service is None or not service.spec.slo.classes:
        return "Unknown", "NoObjectives", "spec.slo.classes names no class to measure against"
    if found is None:
        told = "the operator's setting prometheus.url names no Prometheus; routers export penstock_router_slo_attained_total"
        return "Unknown", "NoPrometheus", told
    if found.fault:
        return "Unknown", "PrometheusUnreachable", found.fault
    asked = {one.name for one in service.spec.slo.classes}
    shares = [one for one in found.shares if one.service_class in asked]
    if not shares:
        return "Unknown", "NoTraffic", "too few requests of the classes ended in the last 10 minutes to judge by"
    wanted = service.spec.slo.attainment
    least = sorted(shares, key=lambda one: (one.share, one.service_class, one.objective))
    missed = [one for one in least if one.share < wanted]
    told = ", ".join(f"{one.service_class} {one.objective} {_share(one.share)}" for one in missed or least[:1])
    if missed:
        return "False", "Missed", f"within their objective in the last 10 minutes: {told}; {_share(wanted)} are asked for"
    return "True", "Met", f"least of all in the last 10 minutes: {told}; {_share(wanted)} are asked for"


def shares(found: Attainment) -> list[dict[str, Any]]:
    """As `status.slo` has them."""
    classes: dict[str, dict[str, Any]] = {}
    for one in found.shares:
        classes.setdefault(one.service_class, {"class": one.service_class})[f"{one.objective}Attained"] = round(one.share, 3)
    return [classes[name] for name in sorted(classes)]


def column(found: Attainment | None) -> dict[str, str]:
    return {"slo": _share(min(one.share for one in found.shares))} if found is not None and found.shares else {}


def _share(share: float) -> str:
    """Rounded down: 100 % means all."""
    return f"{int(share * 1000) / 10:.1f} %"
