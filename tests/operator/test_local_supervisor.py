"""The supervisor over stand-in programs: start, restart, drain, and what a kill -9 leaves."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock_operator.local import owned, state
from penstock_operator.local.state import Run
from penstock_operator.local.stop import down

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow]


class Stage:
    def __init__(self, folder: Path) -> None:
        self.folder, self.play = folder, folder / "play"
        self.play.mkdir()
        self.supervisors: list[subprocess.Popen[str]] = []

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(HERE), *(one for one in sys.path if one)])
        return {
            **os.environ,
            "PENSTOCK_STATE_DIR": str(self.folder / "state"),
            "PLAY_DIR": str(self.play),
            "PYTHONPATH": path,
        }

    def up(self, *listen: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "supervised.py"), *(listen or ["127.0.0.1:0"] * 3)]
        one = subprocess.Popen(command, env=self.environment(), stdout=subprocess.PIPE, text=True)
        self.supervisors.append(one)
        return one

    def run(self) -> Run:
        found = state.read(self.folder / "state/tiny")
        assert found is not None
        return found

    def routers(self) -> list[int]:
        return [int(one.name.split("-")[1]) for one in self.play.glob("router-*")]

    def close(self) -> None:
        for one in self.supervisors:
            one.kill()
            one.wait()
            assert one.stdout is not None
            one.stdout.close()
        left = state.read(self.folder / "state/tiny")
        if left is not None:
            owned.end(left.mark, 0.0)
            state.remove_ray_folder(left)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    made = Stage(tmp_path)
    yield made
    made.close()


def until_ready(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith("ready "):
            return lines
    raise AssertionError(f"ended before it was ready: {lines}")


def wait(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_run_starts_serves_and_drains_to_nothing_on_sigterm(stage: Stage) -> None:
    process = stage.up()
    lines = until_ready(process)
    run = stage.run()
    assert lines[-1] == f"ready http={run.http} grpc={run.grpc}" and run.phase == "ready"
    assert any("prefill-0 (prefill) is ready" in line for line in lines)
    assert len(owned.find(run.mark)) == 3 and Path(run.ray_dir).stat().st_mode & 0o777 == 0o700
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert owned.find(run.mark) == [] and not Path(run.ray_dir).exists() and state.names() == []
    assert process.stdout is not None and "ended; no process is left" in process.stdout.read()


def test_down_ends_a_live_run_and_a_second_down_finds_nothing(stage: Stage) -> None:
    process = stage.up()
    until_ready(process)
    run = stage.run()
    assert down(None, print) == "tiny"
    assert process.wait(5) == 0 and owned.find(run.mark) == [] and down(None, print) is None


def test_a_second_up_is_refused_with_the_address_of_the_first(stage: Stage) -> None:
    first = stage.up()
    until_ready(first)
    second = stage.up()
    assert second.stdout is not None
    told = second.stdout.read()
    assert second.wait(20) == 3 and f"grpc={stage.run().grpc}" in told and "running already" in told
    assert first.poll() is None


def test_a_router_that_is_killed_is_started_again_on_its_address(stage: Stage) -> None:
    process = stage.up()
    until_ready(process)
    (router,) = stage.routers()
    os.kill(router, signal.SIGKILL)
    wait(lambda: len(stage.routers()) == 2)
    assert process.poll() is None and stage.run().phase == "ready"


def test_what_a_kill_9_left_is_ended_by_the_next_up(stage: Stage) -> None:
    process = stage.up()
    until_ready(process)
    dead = stage.run()
    process.kill()
    process.wait()
    # The children were told of the death; the stubborn one ignores it.
    wait(lambda: len(owned.find(dead.mark)) == 1)
    assert dead.supervisor() is None
    second = stage.up()
    lines = until_ready(second)
    assert any("an earlier run of tiny died and left 1 processes" in line for line in lines)
    assert owned.find(dead.mark) == [] and not Path(dead.ray_dir).exists()
    assert stage.run().run_id != dead.run_id


def test_what_a_kill_9_left_is_ended_by_down(stage: Stage) -> None:
    process = stage.up()
    until_ready(process)
    dead = stage.run()
    process.kill()
    process.wait()
    assert down("tiny", print) == "tiny" and owned.find(dead.mark) == [] and state.names() == []


def test_a_ray_that_dies_ends_the_run_with_an_error(stage: Stage) -> None:
    process = stage.up()
    until_ready(process)
    run = stage.run()
    hosts = [one for one in owned.find(run.mark) if one.command.endswith("ray.json")]
    assert len(hosts) == 1 and owned.send(hosts[0], signal.SIGKILL)
    assert process.wait(30) == 1 and owned.find(run.mark) == []
    assert process.stdout is not None and "the Ray host ended unexpectedly (SIGKILL)" in process.stdout.read()


def test_a_taken_port_is_told_by_its_flag_and_starts_nothing(stage: Stage) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = stage.up("127.0.0.1:0", address, "127.0.0.1:0")
        assert process.stdout is not None
        told = process.stdout.read()
        assert process.wait(20) == 3 and f"--grpc: {address} is in use" in told
    assert state.names() == [] and stage.routers() == []


def test_down_refuses_a_name_that_does_not_run(stage: Stage) -> None:
    with pytest.raises(state.LocalError, match="chat: is not running here; running: none"):
        down("chat", print)
