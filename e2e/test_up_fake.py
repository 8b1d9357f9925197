"""`penstock up` as a person runs it, on a real Ray with the fake engine: everything but vLLM.

Run one file at a time: each test starts a Ray of its own.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from penstock_client import Client
from penstock_operator.local import owned, state
from penstock_operator.local.state import Run

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
CLI = [sys.executable, "-m", "penstock_cli.main"]
LISTEN = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--reports", "127.0.0.1:0"]


class Machine:
    def __init__(self, folder: Path) -> None:
        self.environment = {**os.environ, "PENSTOCK_STATE_DIR": str(folder), "PENSTOCK_ENGINE": "fake"}
        for name in ("PENSTOCK_ADDRESS", "PENSTOCK_API_KEY", "PYTHONDONTWRITEBYTECODE"):
            self.environment.pop(name, None)
        self.folder = folder / "tiny"
        self.marks: list[owned.Mark] = []
        self.processes: list[subprocess.Popen[str]] = []

    def cli(self, *words: str, code: int = 0, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*CLI, *words], env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def up(self) -> Run:
        out = self.cli("up", "--detach", *LISTEN).stdout
        run = self.run()
        assert out == f"ready http={run.http} grpc={run.grpc}\n" and run.phase == "ready"
        self.marks.append(run.mark)
        return run

    def up_in_foreground(self) -> subprocess.Popen[str]:
        """A process that is ended with the test, whatever fails."""
        command = [*CLI, "up", *LISTEN]
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready http=127.0.0.1:")
        self.marks.append(self.run().mark)
        return process

    def run(self) -> Run:
        found = state.read(self.folder)
        assert found is not None
        return found

    def generate(self, prompt: str = "Once upon a time") -> dict[str, object]:
        document: dict[str, object] = json.loads(
            self.cli("generate", prompt, "--max-tokens", "8", "--explain", "--timeout", "60", "-o", "json").stdout
        )
        return document

    def both_ready(self) -> bool:
        asked = subprocess.run([*CLI, "status", "-o", "json"], env=self.environment, capture_output=True, check=False)
        pools = json.loads(asked.stdout)["pools"] if asked.returncode == 0 else {}
        return {name: pool["ready"] for name, pool in pools.items()} == {"prefill": 1, "decode": 1}

    def close(self) -> None:
        last = state.read(self.folder)
        supervisor = last.supervisor() if last else None
        if supervisor:
            owned.send(supervisor, signal.SIGKILL)
        for process in self.processes:
            process.kill()
            process.communicate()
        for mark in [*self.marks, *([last.mark] if last else [])]:
            owned.end(mark, 0.0)
        if last:
            state.remove_ray_folder(last)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def until(condition: Callable[[], object], limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.2)


def listeners(run: Run) -> set[str]:
    """Addresses that the run's processes listen on."""
    found = set()
    for one in owned.find(run.mark):
        try:
            connections = psutil.Process(one.pid).net_connections("inet")
        except psutil.Error:
            continue
        found |= {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    return found


def test_a_service_comes_up_answers_on_loopback_only_and_goes_down_to_nothing(machine: Machine) -> None:
    run = machine.up()
    answer = machine.generate()
    usage = answer["usage"]
    assert isinstance(usage, dict) and usage["completion_tokens"] == 8 and answer["finish_reason"] == "length"
    assert machine.both_ready()
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}).encode()
    request = urllib.request.Request(f"http://{run.http}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert json.loads(reply.read())["usage"]["completion_tokens"] == 4
    assert Path(run.ray_dir).stat().st_mode & 0o777 == 0o700
    assert listeners(run) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    refused = machine.cli("up", *LISTEN, code=1)
    assert f"grpc={run.grpc}" in refused.stderr
    machine.cli("down")
    assert owned.find(run.mark) == [] and not Path(run.ray_dir).exists()


def test_a_killed_router_and_a_killed_worker_come_back(machine: Machine) -> None:
    run = machine.up()
    router = next(one for one in owned.find(run.mark) if "penstock_router.main" in one.command)
    assert owned.send(router, signal.SIGKILL)
    until(machine.both_ready)
    machine.generate()
    replicas = [one for one in owned.find(run.mark) if "ServeReplica" in one.command]
    assert len(replicas) == 2 and owned.send(replicas[0], signal.SIGKILL)
    machine.generate()
    until(lambda: sum("ServeReplica" in one.command for one in owned.find(run.mark)) == 2)
    until(machine.both_ready)
    machine.generate()
    machine.cli("down")
    assert owned.find(run.mark) == []


def test_after_a_kill_9_of_the_supervisor_nothing_is_left_by_the_next_up_or_down(machine: Machine) -> None:
    dead = machine.up()
    supervisor = dead.supervisor()
    assert supervisor is not None and owned.send(supervisor, signal.SIGKILL)
    until(lambda: dead.supervisor() is None)
    run = machine.up()
    assert run.run_id != dead.run_id and owned.find(dead.mark) == [] and not Path(dead.ray_dir).exists()
    machine.generate()
    supervisor = run.supervisor()
    assert supervisor is not None
    # Everything at once: no process gets to clean up after another.
    for one in [supervisor, *(one for one in owned.find(run.mark) if "ray_host" in one.command)]:
        owned.send(one, signal.SIGKILL)
    machine.cli("down")
    assert owned.find(run.mark) == [] and not Path(run.ray_dir).exists()


def test_ctrl_c_lets_an_open_answer_end_and_leaves_nothing(machine: Machine) -> None:
    process = machine.up_in_foreground()
    run = machine.run()
    with Client(run.grpc) as client, client.stream("Once upon a time", max_tokens=1000, timeout_s=120) as stream:
        first = next(stream)
        process.send_signal(signal.SIGINT)
        rest = list(stream)
    assert rest[-1].finish_reason == "length"
    assert sum(len(delta.token_ids) for delta in [first, *rest]) == 1000
    assert process.wait(120) == 0
    assert owned.find(run.mark) == [] and state.read(machine.folder) is None
