"""What a plan needs to know beyond objects: how far a model has been fetched, whether objectives are met.

Promise: pure. `looks` says what to ask; the shell asks and gives answers, as objects beside the children; `downloads` and
`attainment` read them. A question without an answer leaves its part of the status unknown, and says why.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from penstock_operator.plan.models import CONTAINER
from penstock_operator.plan.observed import Attained, Attainment, Download, Object
from penstock_operator.plan.settings import OperatorSettings

API_VERSION = "looks.penstock.dev/v1"
LOG_TAIL, SAMPLES = "LogTail", "Samples"
WINDOW = "10m"
# Below it a share says more about chance than about the service.
LEAST_JUDGED = 20.0
_KEY = "penstock_model"
# Reasons for which a fetcher waits that `fetch_trouble` explains.
SAID_BY_FETCHERS = frozenset({"CrashLoopBackOff", "CreateContainerConfigError"})


@dataclass(frozen=True, slots=True)
class LogTail:
    """The last line of a container's log, which is a JSON object."""

    pod: str
    container: str


@dataclass(frozen=True, slots=True)
class Query:
    """An instant query of Prometheus, in PromQL."""

    name: Literal["attained", "judged"]
    expression: str


Look = LogTail | Query


def looks(document: Object, children: Sequence[Object], settings: OperatorSettings) -> tuple[Look, ...]:
    tails = tuple(LogTail(str(pod["metadata"]["name"]), CONTAINER) for pod in _fetching(children))
    return (*tails, *(_queries(document) if settings.prometheus.url and _objectives(document) else ()))


def answer(look: Look, value: Any, fault: str = "") -> Object:
    """As the shell hands it over: a LogTail's value is the object of the line, a Query's the rows of Prometheus' result."""
    name = look.pod if isinstance(look, LogTail) else look.name
    kind = LOG_TAIL if isinstance(look, LogTail) else SAMPLES
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "value": value, "fault": fault}


def _fetching(children: Sequence[Object]) -> Iterable[Object]:
    """Pods whose model is being fetched."""
    for pod in children:
        if pod.get("kind") == "Pod":
            for one in (pod.get("status") or {}).get("initContainerStatuses") or ():
                if one.get("name") == CONTAINER and "running" in (one.get("state") or {}):
                    yield pod


def _objectives(document: Object) -> bool:
    spec = document.get("spec") or {}
    slo = spec.get("slo") if isinstance(spec, Mapping) else None
    return bool(slo.get("classes")) if isinstance(slo, Mapping) else False


def _queries(document: Object) -> tuple[Query, ...]:
    meta = document.get("metadata") or {}
    chosen = f'namespace="{meta.get("namespace", "default")}",pod=~"{meta.get("name")}-router-[a-z0-9]+-[a-z0-9]+"'

    def expression(metric: str) -> str:
        return f"sum by (service_class, objective) (increase({metric}{{{chosen}}}[{WINDOW}]))"

    return (
        Query("attained", expression("penstock_router_slo_attained_total")),
        Query("judged", expression("penstock_router_slo_judged_total")),
    )


def downloads(children: Sequence[Object]) -> tuple[Download, ...]:
    """By pod; of one whose log could not be read nothing is known but that it fetches."""
    tails = {one["metadata"]["name"]: one for one in children if one.get("kind") == LOG_TAIL}
    return tuple(_download(tails.get(pod["metadata"]["name"], {})) for pod in _fetching(children))


def known(children: Sequence[Object]) -> frozenset[str]:
    """Pods whose fetcher has found the model: what ended an earlier one is over."""
    return frozenset(
        str(one["metadata"]["name"]) for one in children if one.get("kind") == LOG_TAIL and _download(one).total_bytes
    )


def _download(tail: Object) -> Download:
    value = tail.get("value")
    said = value.get(_KEY) if isinstance(value, Mapping) else None
    try:
        return Download(int(said["done_bytes"]), int(said["total_bytes"]), bool(said["waiting"]))  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return Download()


def attainment(children: Sequence[Object]) -> Attainment | None:
    """None: nobody was asked."""
    found = {one["metadata"]["name"]: one for one in children if one.get("kind") == SAMPLES}
    if not found:
        return None
    fault = next((str(one["fault"]) for one in found.values() if one.get("fault")), "")
    if fault:
        return Attainment(fault=fault)
    attained, judged = (_rows(found.get(name, {})) for name in ("attained", "judged"))
    enough = {key: count for key, count in judged.items() if count >= LEAST_JUDGED}
    return Attainment(tuple(Attained(*key, min(1.0, attained.get(key, 0.0) / count)) for key, count in sorted(enough.items())))


def _rows(answered: Object) -> dict[tuple[str, str], float]:
    """(service class, objective) -> value."""
    rows: dict[tuple[str, str], float] = {}
    for row in answered.get("value") or ():
        labels = row.get("metric") or {}
        try:
            rows[str(labels["service_class"]), str(labels["objective"])] = float(row["value"][1])
        except (KeyError, IndexError, TypeError, ValueError):
            continue
    return rows


def fetch_trouble(pod: Object, source: str, secret: str, keys: Sequence[str]) -> tuple[str, str] | None:
    """Why a pod's model could not be fetched, as (reason, message): the fetcher's last words, or why it cannot begin."""
    for one in (pod.get("status") or {}).get("initContainerStatuses") or ():
        if one.get("name") != CONTAINER:
            continue
        state = one.get("state") or {}
        waiting = state.get("waiting") or {}
        if waiting.get("reason") == "CreateContainerConfigError":
            told = waiting.get("message") or waiting["reason"]
            named = f"; model.secretRef names Secret {secret}, of which {source} needs key {' and '.join(keys)}" if secret else ""
            return "ModelSecretMissing", f"{told}{named}"
        ended = state.get("terminated") or (one.get("lastState") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            return _last_words(ended)
    return None


def _last_words(ended: Mapping[str, Any]) -> tuple[str, str]:
    try:
        said = json.loads(ended.get("message") or "")[_KEY]
        return str(said["reason"]), str(said["message"])
    except (ValueError, KeyError, TypeError):
        return "ModelFetchFailed", f"the model's fetcher ended with {ended.get('reason', 'an error')} ({ended.get('exitCode')})"
