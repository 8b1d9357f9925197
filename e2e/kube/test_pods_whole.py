"""The whole of it on a real node: chart, operator, KubeRay, Ray and vLLM in pods, from `apply` to an answer, to nothing left."""

import json
import subprocess
import time

import pytest
from kube.asked import or_skip
from kube.node_service import HOST, NAME, SPACE, installed, moment, since

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.pods]


@pytest.fixture(scope="module")
def world(say):
    with or_skip(installed, say, "node") as found:
        yield found


def phases(world, begun, first):
    """When each part was there, in seconds after `apply`, by what the API server recorded."""
    head = world.head()[0]
    workers = [one for pool in ("prefill", "decode") for one in world.pods(**{"serving.penstock.dev/pool": pool})]
    rayservice = world.cluster.objects("rayservices.ray.io", "-n", SPACE)[0]
    ready = [one for one in world.service()["status"]["conditions"] if one["type"] == "Ready"]
    told = {
        "RayService made": moment(rayservice["metadata"]["creationTimestamp"]),
        "router ready": max(since(one, "Ready") for one in world.routers()),
        "head pod running": since(head, "Initialized"),
        "head ready": since(head, "Ready"),
        "worker pods made": max(moment(one["metadata"]["creationTimestamp"]) for one in workers),
        "workers joined the head's GCS": max(since(one, "Initialized") for one in workers),
        "engines ready": max(since(one, "Ready") for one in workers),
        "LLMService Ready": moment(ready[0]["lastTransitionTime"]),
        "first token": first,
    }
    return {part: round(at - begun, 1) for part, at in told.items()}


def test_applied_answered_and_deleted_without_a_trace(world):
    before = world.everything()
    with subprocess.Popen(world.client("-m", "kube.node_ask", "first", HOST), stdout=subprocess.PIPE, text=True) as early:
        begun = time.time()
        world.apply()
        service = world.settled()
        first = json.loads(early.communicate(timeout=120)[0])["first_token"]
    world.say("pods: seconds after apply: " + ", ".join(f"{part} {at}" for part, at in phases(world, begun, first).items()))

    answers = json.loads(world.python("-m", "kube.node_ask", "both", HOST))
    assert answers["tokens"] == 24 and answers["text"], answers
    assert 0 < answers["transferred"] <= answers["prompt"], "the prompt's KV went from the prefill worker to the decode worker"
    assert answers["chat"] == "The capital of France is Paris." and answers["models"] == ["tiny"], answers

    columns = world.cluster.kubectl("get", "llm", "-n", SPACE).splitlines()
    assert columns[0].split() == ["NAME", "MODEL", "MODE", "PREFILL", "DECODE", "PHASE", "SLO", "AGE"]
    assert columns[1].split()[:6] == [NAME, "tiny", "disaggregated", "1/1", "1/1", "Ready"], columns
    conditions = {one["type"]: one["status"] for one in service["status"]["conditions"]}
    assert conditions["Durable"] == "True" and conditions["Degraded"] == "False", conditions
    world.until(lambda: told(world) == "Running", 60)
    assert_left_alone(world)

    gone = time.monotonic()
    world.cluster.kubectl("delete", "llm", NAME, "-n", SPACE)
    world.until(lambda: world.everything() == before, 240)
    world.say(f"pods: nothing left {time.monotonic() - gone:.1f} s after the deletion")


def assert_left_alone(world):
    """KubeRay writes its status all the time, and each one wakes the operator: it looks, and writes nothing."""
    world.until(lambda: figure(world, "writes_total") == (time.sleep(5), figure(world, "writes_total"))[1], 60)
    writes, looks = figure(world, "writes_total"), figure(world, "reconcile_seconds_count")
    world.cluster.kubectl("annotate", "llm", NAME, "-n", SPACE, "look=again", "--overwrite")
    world.until(lambda: figure(world, "reconcile_seconds_count") > looks, 60)
    assert figure(world, "writes_total") == writes


def figure(world, what):
    page = f"http://penstock.{SPACE}.svc.cluster.local:8080/metrics"
    ask = f"import urllib.request as u; print(u.urlopen({page!r}, timeout=20).read().decode())"
    lines = [line for line in world.python("-c", ask).splitlines() if line.startswith(f"penstock_operator_{what}")]
    return sum(float(line.split()[-1]) for line in lines)


def told(world):
    """KubeRay's own judgement."""
    return (world.cluster.objects("rayservices.ray.io", "-n", SPACE)[0].get("status") or {}).get("serviceStatus")


def test_every_container_meets_the_restricted_standard(world):
    """By the API server's own check: a namespace that enforces it takes every pod that the service is made of."""
    world.cluster.kubectl("label", "namespace", SPACE, "pod-security.kubernetes.io/enforce=restricted")
    try:
        world.apply()
        world.until(lambda: world.head() and world.routers(), 120)
        world.until(lambda: len(world.pods(**{"ray.io/node-type": "worker"})) == 2, 300)
    finally:
        world.cluster.kubectl("delete", "llm", NAME, "-n", SPACE, check=False)
        world.cluster.kubectl("label", "namespace", SPACE, "pod-security.kubernetes.io/enforce-")
    world.until(lambda: not world.head() and not world.routers(), 240)
