"""The chart on the real node, and one LLMService of it: installed, applied, waited for, watched.

Promise: what runs in pods is this checkout; sizes fit a machine of two cores; every wait has an end whose message says what
was seen last.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from kube.build import Say, ensure
from kube.control import Cluster
from kube.node import node
from kube.waiting import until

SPACE = "penstock"
NAME = "tiny"
HOST = f"{NAME}.{SPACE}.svc.cluster.local"
ROOT = Path(__file__).resolve().parents[2]
VALUES = Path(__file__).with_name("node_values.yaml")
SERVICE: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("node_tiny.yaml").read_text())
# Engines start in half a minute on an idle machine, and in several where the tests of others run beside.
READY_S = 600.0


@contextlib.contextmanager
def installed(say: Say) -> Iterator["World"]:
    """A node with storage, KubeRay and Penstock's operator, both in pods of their own."""
    with node(say, ray=True, volumes=12) as cluster:
        cluster.programs |= ensure(["helm"], say)
        chart = ROOT / "deploy/helm/penstock"
        flags = ["--kubeconfig", cluster.kubeconfig, "-n", SPACE, "--create-namespace", "-f", VALUES]
        command = [*cluster.inside, cluster.programs["helm"], "install", "penstock", chart, *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        for name in ("kuberay-operator", "penstock"):
            cluster.kubectl("rollout", "status", f"deployment/{name}", "-n", SPACE, "--timeout=180s", seconds=200)
        yield World(cluster, say)


@dataclass
class World:
    cluster: Cluster
    say: Say
    spec: dict[str, Any] = field(default_factory=lambda: dict(SERVICE["spec"]))

    def pods(self, **labels: str) -> list[dict[str, Any]]:
        """Those that are not being deleted."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        found = self.cluster.objects("pods", "-n", SPACE, "-l", selector)
        return [one for one in found if not one["metadata"].get("deletionTimestamp")]

    def workers(self, pool: str) -> list[str]:
        """Names of a pool's Ready pods."""
        return [name(one) for one in self.pods(**{"serving.penstock.dev/pool": pool}) if since(one, "Ready")]

    def head(self) -> list[dict[str, Any]]:
        return self.pods(**{"ray.io/node-type": "head"})

    def routers(self) -> list[dict[str, Any]]:
        return self.pods(**{"app.kubernetes.io/component": "router"})

    def service(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cluster.kubectl("get", "llm", NAME, "-n", SPACE, "-o", "json"))
        return found

    def apply(self, **spec: Any) -> None:
        """The service, with these parts of its spec as they are to be from now on."""
        self.spec |= spec
        self.cluster.apply(SERVICE | {"spec": self.spec})

    def settled(self, seconds: float = READY_S) -> dict[str, Any]:
        """Ready, at the spec's generation, with its rollout done."""

        def look() -> dict[str, Any] | None:
            one = self.service()
            status = one.get("status") or {}
            reasons = {part["type"]: part["reason"] for part in status.get("conditions", ())}
            current = status.get("observedGeneration") == one["metadata"]["generation"]
            return one if current and status.get("phase") == "Ready" and reasons.get("Progressing") == "Complete" else None

        return self.until(look, seconds)

    def until(self, look: Callable[[], Any], seconds: float = READY_S, every: float = 1.0) -> Any:
        return until(look, seconds, self.told, every)

    def told(self) -> str:
        """What there is, and the end of what the operators and the routers said."""
        kinds = "pods,llm,rayservices,rayclusters"
        return self.cluster.kubectl("get", kinds, "-n", SPACE, "-o", "wide", check=False) + self.trace()

    def trace(self) -> str:
        """The end of what the operators and the routers said."""
        said = []
        for label in ("app.kubernetes.io/component=operator", "app.kubernetes.io/component=router"):
            said.append(self.cluster.kubectl("logs", "-n", SPACE, "-l", label, "--tail=12", check=False))
        return "\n".join(said)[-4000:]

    def everything(self) -> set[str]:
        """Every object of the namespace that lasts, as KIND/NAME."""
        listed = self.cluster.kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
        kinds = [one for one in listed if not one.startswith(("events", "endpoints", "leases", "controllerrevisions.serving"))]
        names = self.cluster.kubectl("get", ",".join(kinds), "-n", SPACE, "-o", "name", "--ignore-not-found", seconds=120).split()
        # The operators' own pods may be replaced meanwhile; their deployments stay.
        return {one for one in names if not one.startswith(("pod/penstock-", "pod/kuberay-operator-", "pod/metrics"))}

    def python(self, *words: str, seconds: float = READY_S) -> str:
        """What a client's program in the node's network prints."""
        done = subprocess.run(self.client(*words), capture_output=True, text=True, timeout=seconds)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def client(self, *words: str) -> list[str]:
        return [*self.cluster.inside, "env", f"PYTHONPATH={ROOT / 'e2e'}", sys.executable, *words]


def name(one: dict[str, Any]) -> str:
    return str(one["metadata"]["name"])


def since(one: dict[str, Any], condition: str) -> float:
    """When it came true, in seconds since the epoch; 0 where it is not."""
    for part in (one.get("status") or {}).get("conditions") or ():
        if part["type"] == condition and part["status"] == "True":
            return moment(part["lastTransitionTime"])
    return 0.0


def moment(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


@dataclass
class Load:
    """`kube.node_load`, running."""

    process: "subprocess.Popen[str]"
    stop: Path
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        whole = self.log.read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in whole if line.endswith("\n")]
        return [one for one in found if "stream" in one]

    def end(self, seconds: float = 180.0) -> None:
        self.stop.touch()
        self.process.wait(seconds)


@contextlib.contextmanager
def loaded(world: World, folder: Path, streams: int = 3, tokens: int = 300) -> Iterator[Load]:
    """Yields once the right answers are known."""
    stop, log, faults = folder / "stop", folder / "load.jsonl", folder / "load.err"
    words = ["-m", "kube.node_load", "--host", HOST, "--streams", str(streams), "--tokens", str(tokens), "--stop", str(stop)]
    with log.open("w") as out, faults.open("w") as err:
        process = subprocess.Popen(world.client(*words), stdout=out, stderr=err, text=True, env=dict(os.environ))
    load = Load(process, stop, log)
    try:
        world.until(lambda: '"ready"' in log.read_text() or process.poll() is not None, 300)
        assert process.poll() is None, faults.read_text()[-3000:]
        yield load
        load.end()
        assert process.returncode == 0, faults.read_text()[-3000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the streams that were open at some moment of a disturbance."""

    streams: int
    tokens: int
    handed_off: int  # legs that pulled the KV of the one before
    recomputed: int  # legs that computed it anew
    errors: tuple[str, ...]
    wrong: int

    def __str__(self) -> str:
        return (
            f"{self.streams} streams, {self.tokens} tokens, {self.handed_off} hand-offs, {self.recomputed} recomputes, "
            f"{len(self.errors)} errors, {self.wrong} wrong"
        )


def tally(lines: list[dict[str, Any]], begun: float, ended: float) -> Tally:
    """Of the streams that overlap with this span."""
    mine = [one for one in lines if one["ended"] >= begun and one["begun"] <= ended]
    moved = [leg for one in mine for leg in one.get("legs", ()) if leg[0] in ("handoff", "resume")]
    pulled = sum(leg[1] > 0 for leg in moved)
    return Tally(
        streams=len(mine),
        tokens=sum(one.get("tokens", 0) for one in mine),
        handed_off=pulled,
        recomputed=len(moved) - pulled,
        errors=tuple(one["error"] for one in mine if "error" in one),
        wrong=sum(one.get("right") is False for one in mine),
    )
