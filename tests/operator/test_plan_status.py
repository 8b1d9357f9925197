"""Conditions through a service's life: each says what is so, of which generation, and what to do about it."""

import re
from typing import Any

import crd_cases
import pytest
from plan_world import World

from penstock_operator.api.status import Status
from penstock_operator.plan import OperatorSettings
from penstock_operator.plan.looks import Query, answer, looks

CLASSES = [{"name": "interactive", "ttft": "500ms", "tpot": "50ms"}, {"name": "batch", "ttft": "60s", "tpot": "500ms"}]
SLO = ("spec.slo", {"attainment": 0.99, "classes": CLASSES})
TYPES = {"Accepted", "Ready", "Progressing", "Degraded", "SLOMet", "Autoscaling"}


def world(*edits: tuple[str, Any]) -> World:
    return World(crd_cases.manifest(*edits))


def conditions(here: World) -> dict[str, dict[str, Any]]:
    return {one["type"]: one for one in here.document["status"]["conditions"]}


def measured(here: World, judged: int, **attained: int) -> None:
    """What Prometheus answers; `attained` are counts by CLASS_OBJECTIVE."""
    here.settings = OperatorSettings.model_validate({"prometheus": {"url": "http://prometheus:9090"}})

    def rows(values: dict[str, int]) -> list[dict[str, Any]]:
        split = [(name.partition("_"), value) for name, value in values.items()]
        return [{"metric": {"service_class": n[0], "objective": n[2]}, "value": [0, str(v)]} for n, v in split]

    values = {"attained": attained, "judged": dict.fromkeys(attained, judged)}
    here.answers = [
        answer(one, rows(values[one.name])) for one in looks(here.document, [], here.settings) if isinstance(one, Query)
    ]


def test_every_condition_is_there_from_the_first_reconcile_of_the_generation_it_is_about() -> None:
    here = world()
    here.step()
    assert set(conditions(here)) >= TYPES
    here.settle()
    here.change(crd_cases.manifest(("spec.engine.env", [{"name": "A", "value": "b"}]))["spec"])
    here.step()
    assert {one["observedGeneration"] for one in conditions(here).values()} == {2}


def test_reasons_are_words_and_what_is_not_well_has_a_message() -> None:
    here = world()
    for _ in range(3):
        here.step()
        for kind, one in conditions(here).items():
            assert re.fullmatch(r"[A-Z][A-Za-z]+", one["reason"]), kind
            assert one["message"] or one["reason"] in ("Accepted", "Volume", "AsExpected"), kind
        here.run_routers()
        here.run_pods()


def test_a_time_of_transition_changes_with_the_status_only() -> None:
    here = world()
    here.settle()
    before = {kind: one["lastTransitionTime"] for kind, one in conditions(here).items()}
    here.now_s += 3600
    here.change(crd_cases.manifest(("spec.engine.env", [{"name": "A", "value": "b"}]))["spec"])
    here.step()
    after = conditions(here)
    changed = {kind for kind, one in after.items() if one["lastTransitionTime"] != before[kind]}
    assert changed == {"Progressing"}


def test_a_status_is_what_the_models_say() -> None:
    here = world(SLO)
    measured(here, 1000, interactive_ttft=999, interactive_tpot=998, batch_ttft=1000)
    here.settle()
    made = here.document["status"]
    kept = Status.model_validate(made).model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert {key: kept[key] for key in made} == {key: list(v) if isinstance(v, tuple) else v for key, v in made.items()}


def test_paused_says_so_touches_nothing_and_resumes_with_an_event() -> None:
    here = world()
    here.settle()
    here.change(crd_cases.manifest(("spec.paused", True), ("spec.router", {"replicas": 3}))["spec"])
    plan = here.step()
    assert plan.objects == () and here.condition("Progressing") == ("False", "Paused")
    assert here.condition("Degraded") == ("False", "AsExpected") and here.document["status"]["phase"] == "Paused"
    assert here.events[-1] == ("Normal", "Paused")
    here.change(crd_cases.manifest(("spec.router", {"replicas": 3}))["spec"])
    here.settle()
    assert here.condition("Accepted") == ("True", "Accepted") and ("Normal", "Accepted") in here.events


@pytest.mark.parametrize(("mode", "reason"), [("off", "Off"), ("on", "NotBuilt"), ("recommend", "NotBuilt")])
def test_autoscaling_says_whether_it_is_asked_for(mode: str, reason: str) -> None:
    here = world(("spec.autoscaling", {"mode": mode}))
    here.step()
    assert here.condition("Autoscaling") == ("False", reason) and f"autoscaling.mode {'is off' if mode == 'off' else mode}" in (
        here.message("Autoscaling")
    )


def test_workers_that_are_lost_and_come_back_are_told() -> None:
    here = world()
    here.settle()
    here.pods = here.pods[:1]
    here.step()
    assert here.condition("Ready") == ("False", "WorkersMissing") and "0 of 1 workers are ready" in here.message("Ready")
    assert here.events[-1] == ("Warning", "NotReady") and here.told[-1].startswith("WorkersMissing: pool")
    here.settle()
    assert here.events[-1] == ("Normal", "Ready") and here.condition("Ready")[0] == "True"


def test_a_pool_that_grows_stays_ready_and_says_that_it_grows() -> None:
    here = world()
    here.settle()
    here.change(crd_cases.manifest(("spec.topology.decode.replicas", 3))["spec"])
    here.step()
    assert here.condition("Ready") == ("True", "Serving") and "1 of 3 decode" in here.message("Ready")
    assert here.condition("Progressing")[0] == "True" and here.document["status"]["phase"] == "Updating"


def test_a_change_of_size_is_told() -> None:
    here = world()
    here.settle()
    here.change(crd_cases.manifest(("spec.topology.decode.replicas", 3))["spec"])
    here.settle()
    assert ("Normal", "Resized") in here.events and any("pool decode: 1 -> 3 workers" in one for one in here.told)


def test_a_settled_service_tells_no_more_events() -> None:
    here = world(SLO)
    measured(here, 1000, interactive_ttft=900)
    here.settle()
    before = list(here.events)
    for _ in range(5):
        here.step()
    assert here.events == before


def test_objectives_are_met_where_every_class_is() -> None:
    here = world(SLO)
    measured(here, 1000, interactive_ttft=997, interactive_tpot=999, batch_ttft=1000)
    plan = here.step()
    status = here.document["status"]
    assert here.condition("SLOMet") == ("True", "Met") and "interactive ttft 99.7 %" in here.message("SLOMet")
    assert status["slo"] == [
        {"class": "batch", "ttftAttained": 1.0},
        {"class": "interactive", "tpotAttained": 0.999, "ttftAttained": 0.997},
    ]
    assert status["columns"]["slo"] == "99.7 %" and plan.again_in_s == 60.0


def test_objectives_that_are_missed_are_named_and_told_once() -> None:
    here = world(SLO)
    measured(here, 1000, interactive_ttft=900, interactive_tpot=999, batch_ttft=985)
    here.step()
    assert here.condition("SLOMet") == ("False", "Missed")
    assert "interactive ttft 90.0 %, batch ttft 98.5 %; 99.0 % are asked for" in here.message("SLOMet")
    assert here.events.count(("Warning", "SLOMissed")) == 1
    measured(here, 1000, interactive_ttft=999)
    here.step()
    assert here.events[-1] == ("Normal", "SLOMet")


@pytest.mark.parametrize(
    ("edits", "url", "fault", "judged", "reason"),
    [
        ((("spec.slo", ...),), "http://p", "", 1000, "NoObjectives"),
        ((SLO,), "", "", 1000, "NoPrometheus"),
        ((SLO,), "http://p", "http://p answers 503", 1000, "PrometheusUnreachable"),
        ((SLO,), "http://p", "", 3, "NoTraffic"),
    ],
)
def test_what_cannot_be_judged_is_unknown_with_the_reason(
    edits: tuple[tuple[str, Any], ...], url: str, fault: str, judged: int, reason: str
) -> None:
    here = world(*edits)
    measured(here, judged, interactive_ttft=judged)
    here.settings = OperatorSettings.model_validate({"prometheus": {"url": url}})
    if not url:
        here.answers = []
    for one in here.answers:
        one["fault"] = fault
    here.step()
    assert here.condition("SLOMet") == ("Unknown", reason) and here.message("SLOMet")
    assert "slo" not in here.document["status"]["columns"]
    assert not fault or fault in here.message("SLOMet")


def test_prometheus_is_asked_for_the_service_s_own_routers_only() -> None:
    here = world(SLO)
    here.settings = OperatorSettings.model_validate({"prometheus": {"url": "http://p"}})
    asked = [one for one in looks(here.document, [], here.settings) if isinstance(one, Query)]
    assert [one.name for one in asked] == ["attained", "judged"]
    for one in asked:
        assert f"penstock_router_slo_{one.name}_total" in one.expression
        (chosen,) = re.findall(r'pod=~"([^"]+)"', one.expression)
        assert 'namespace="prod"' in one.expression and re.fullmatch(chosen, "tiny-router-6c5d-x2x")
        assert not re.fullmatch(chosen, "tiny-router-two-router-6c5d-x2x") and not re.fullmatch(chosen, "tiny-abc-decode-x")


TRACEBACK = """The deployment failed to start 3 times in a row. See controller logs for details. Error:
ray::ServeReplica:prefill:prefill.initialize_and_get_metadata() (pid=71, ip=10.244.0.9, actor_id=02)
  File "/usr/lib/python3.11/concurrent/futures/_base.py", line 456, in result
RuntimeError: Traceback (most recent call last):
  File "workers/penstock_workers/pool/deployment.py", line 44, in __init__
penstock_workers.engine.vllm_args.EngineArgsError: engine argument 'model' is set by Penstock; use the model's source
"""


@pytest.mark.parametrize(
    ("status", "degraded", "progressing"),
    [("DEPLOY_FAILED", ("True", "EngineFailed"), ("False", "EngineFailed")),
     ("DEPLOYING", ("False", "AsExpected"), ("True", "RollingOut"))],
)  # fmt: skip
def test_an_engine_that_does_not_start_is_told_by_its_own_last_words(
    status: str, degraded: tuple[str, str], progressing: tuple[str, str]
) -> None:
    here = world()
    here.step()
    (key,) = [one for one in here.objects if one[0] == "RayService"]
    failed = {"prefill": {"status": status, "message": "x", "serveDeploymentStatuses": {"prefill": {"message": TRACEBACK}}}}
    here.objects[key]["status"] = {"pendingServiceStatus": {"applicationStatuses": failed}}
    here.step()
    assert (here.condition("Degraded"), here.condition("Progressing")) == (degraded, progressing)
    assert "pool prefill: " in here.message("Progressing")
    assert "EngineArgsError: engine argument 'model' is set by Penstock" in here.message("Progressing")
    assert "Traceback" not in here.message("Progressing") and "/usr/lib" not in here.message("Progressing")
