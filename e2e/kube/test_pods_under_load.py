"""Streams on a real node stay whole through everything that an operator of a cluster does to it, and through what befalls it.

The engines are vLLM with the built-in model; each answer is compared with the undisturbed one. The tests are steps of the life of
one service under one load, in this order; each prints what became of the streams that were open meanwhile.
"""

import contextlib
import copy
import time

import pytest
from kube.asked import or_skip
from kube.node import kill_pod
from kube.node_service import SERVICE, SPACE, installed, loaded, name, tally

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.pods]


@pytest.fixture(scope="module")
def world(say):
    with or_skip(installed, say, "node") as found:
        found.apply()
        found.settled()
        yield found


@pytest.fixture(scope="module")
def load(world, tmp_path_factory):
    with loaded(world, tmp_path_factory.mktemp("load")) as running:
        yield running


@contextlib.contextmanager
def unharmed(world, load, what):
    """No stream that is open at some moment of this ends with an error or with a token too many, too few or other."""
    begun = time.time()
    yield
    ended = time.time()
    # The streams that are open now count too.
    world.until(lambda: all(one > ended for one in last_begun(load).values()), 180)
    found = tally(load.lines(), begun, ended)
    world.say(f"pods: {what}: {ended - begun:.0f} s, {found}")
    assert found.streams > 0
    assert found.errors == () and found.wrong == 0, [one for one in load.lines() if "error" in one or one.get("right") is False]
    moves.append(found)


moves = []


def last_begun(load):
    """Stream -> when the last one that has ended began."""
    return {one["stream"]: one["begun"] for one in load.lines()}


def topology(**replicas):
    made = copy.deepcopy(SERVICE["spec"]["topology"])
    for pool, count in replicas.items():
        made[pool]["replicas"] = count
    return made


def test_a_pool_grows_and_shrinks(world, load):
    with unharmed(world, load, "decode 1 -> 2"):
        world.apply(topology=topology(decode=2))
        world.settled()
        assert len(world.workers("decode")) == 2
    with unharmed(world, load, "decode 2 -> 1"):
        world.apply(topology=topology(decode=1))
        world.until(lambda: len(world.pods(**{"serving.penstock.dev/pool": "decode"})) == 1)
        world.settled()


def test_routers_roll(world, load):
    before = {name(one) for one in world.routers()}
    with unharmed(world, load, "router roll"):
        world.apply(router={"replicas": 2})
        world.until(lambda: len(world.routers()) == 2)
        world.apply(router={"replicas": 1}, slo={"classes": [{"name": "chat", "ttft": "5s", "tpot": "200ms"}]})
        world.until(lambda: len(now := {name(one) for one in world.routers()}) == 1 and not now & before)
        world.settled()


def test_the_operators_are_killed(world, load):
    operators = [one for one in world.cluster.objects("pods", "-n", SPACE) if name(one).startswith(("penstock-", "kuberay-"))]
    settled = world.service()["status"]["revision"]
    with unharmed(world, load, "both operators killed"):
        assert all([kill_pod(world.cluster, SPACE, name(one)) for one in operators])
        world.cluster.kubectl("annotate", "llm", "tiny", "-n", SPACE, "look=again", "--overwrite")
        restarted = ("penstock", "kuberay-operator")
        for deployment in restarted:
            world.cluster.kubectl("rollout", "status", f"deployment/{deployment}", "-n", SPACE, "--timeout=180s", seconds=200)
        world.settled()
    assert world.service()["status"]["revision"] == settled


@pytest.mark.parametrize("pool", ["decode", "prefill"])
def test_a_worker_s_machine_fails(world, load, pool):
    (victim,) = world.workers(pool)
    incarnation = restarts(world, pool)
    with unharmed(world, load, f"{pool} worker pod killed"):
        assert kill_pod(world.cluster, SPACE, victim) > 3
        world.until(lambda: restarts(world, pool) != incarnation)
        world.until(lambda: world.workers(pool))
        world.settled()
    if pool == "decode":
        assert moves[-1].recomputed > 0, "streams were running on it"


def restarts(world, pool):
    """Another one where the pod is another, or its container."""
    found = world.pods(**{"serving.penstock.dev/pool": pool})
    return {(name(one), part["restartCount"]) for one in found for part in one["status"].get("containerStatuses", ())}


def test_a_worker_s_pod_is_evicted(world, load):
    (victim,) = world.workers("decode")
    with unharmed(world, load, "decode worker pod deleted"):
        world.cluster.kubectl("delete", "pod", victim, "-n", SPACE, "--wait=true", seconds=150)
        world.until(lambda: world.workers("decode") not in ([], [victim]))
        world.settled()


def test_the_head_is_lost(world, load):
    (head,) = world.head()
    before = {pool: world.workers(pool) for pool in ("prefill", "decode")}
    engines = engine_pids(world, before)
    with unharmed(world, load, "head pod killed and deleted"):
        assert kill_pod(world.cluster, SPACE, name(head)) > 3
        world.cluster.kubectl("delete", "pod", name(head), "-n", SPACE, "--force", "--grace-period=0")
        world.until(lambda: [name(one) for one in world.head() if ready(one)] not in ([], [name(head)]))
        # Serve's controller has taken its replicas over again when it carries out a change.
        world.apply(topology=topology(decode=2))
        world.settled()
        assert len(world.workers("decode")) == 2
    assert engine_pids(world, before) == engines, "the workers went on as they were"
    world.apply(topology=topology(decode=1))
    world.until(lambda: len(world.pods(**{"serving.penstock.dev/pool": "decode"})) == 1)


def ready(pod):
    return all(one["ready"] for one in pod["status"].get("containerStatuses", ())) and pod["status"]["phase"] == "Running"


def engine_pids(world, pods):
    """Of Serve's replicas, by pod."""
    ask = ["ps", "-eo", "pid,args"]
    said = {pod: world.cluster.kubectl("exec", "-n", SPACE, pod, "-c", "ray-worker", "--", *ask) for [pod] in pods.values()}
    return {
        pod: sorted(line.split()[0] for line in text.splitlines() if "ServeReplica" in line and ".initialize" not in line)
        for pod, text in said.items()
    }


def test_a_new_revision_replaces_the_old(world, load):
    old = world.service()["status"]["revision"]["current"]
    with unharmed(world, load, "rollout to a new revision"):
        world.apply(engine={**SERVICE["spec"]["engine"], "env": [{"name": "OF_REVISION", "value": "2"}]})
        world.settled()
        world.until(lambda: len(world.cluster.objects("rayservices.ray.io", "-n", SPACE)) == 1, 240)
        world.until(lambda: len(world.head()) == 1, 240)
    assert world.service()["status"]["revision"]["current"] != old


def test_what_runs_at_a_deletion_is_answered_whole(world, load):
    load.stop.touch()
    begun = time.time()
    world.cluster.kubectl("delete", "llm", "tiny", "-n", SPACE)
    load.end()
    found = tally(load.lines(), begun, time.time())
    world.say(f"pods: deletion: {found}")
    assert found.streams > 0 and found.errors == () and found.wrong == 0
    world.until(lambda: not world.head() and not world.routers(), 240)
