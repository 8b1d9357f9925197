"""Only a run's own processes are ended, and all of them."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from penstock_operator.local.owned import RUN_ID, Mark, boot_id, end, find, look, send, wait_gone

SLEEP = "print(1, flush=True); import time; time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
# Its child has an environment without the id.
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'], env={});" + SLEEP


class Yard:
    """Processes of a test, all ended with it."""

    def __init__(self) -> None:
        self.mark = Mark(uuid.uuid4().hex, boot_id(), look(os.getpid()).start_ticks)  # type: ignore[union-attr]
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, code: str, run_id: str | None = None) -> subprocess.Popen[bytes]:
        environment = {**os.environ, RUN_ID: run_id or self.mark.run_id}
        command = [sys.executable, "-S", "-c", code]
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True)
        assert child.stdout is not None
        child.stdout.readline()
        self._children.append(child)
        return child

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


@pytest.fixture
def yard() -> Iterator[Yard]:
    made = Yard()
    yield made
    made.close()


def _reap(*children: subprocess.Popen[bytes]) -> None:
    """The kernel's list shows an ended child until its parent has read its exit code."""
    for child in children:
        child.poll()


def test_processes_with_the_runs_id_are_found_and_no_others(yard: Yard) -> None:
    own = {yard.start(SLEEP).pid, yard.start(SLEEP).pid}
    yard.start(SLEEP, run_id=yard.mark.run_id + "0")
    yard.start(SLEEP, run_id="0" + yard.mark.run_id)
    assert {one.pid for one in find(yard.mark)} == own


def test_a_descendant_without_the_id_is_found_through_its_parent(yard: Yard) -> None:
    parent = yard.start(PARENT)
    found = {one.pid: one.parent for one in find(yard.mark)}
    assert len(found) == 2 and parent.pid in found.values()
    assert end(yard.mark, 0.0) == []


def test_a_process_older_than_the_run_is_not_its_own(yard: Yard) -> None:
    child = yard.start(SLEEP)
    process = look(child.pid)
    assert process is not None
    assert find(replace(yard.mark, since_ticks=process.start_ticks + 1)) == []


def test_a_record_of_another_boot_owns_nothing(yard: Yard) -> None:
    yard.start(SLEEP)
    assert find(replace(yard.mark, boot_id="another")) == []


def test_the_searching_process_is_never_its_own_prey(monkeypatch: pytest.MonkeyPatch) -> None:
    me = look(os.getpid())
    assert me is not None
    entries = {me.pid: [f"{RUN_ID}=mine".encode()]}
    monkeypatch.setattr("penstock_operator.local.owned._environment", lambda pid: entries.get(pid, []))
    assert me.pid not in {one.pid for one in find(Mark("mine", boot_id(), 0))}


def test_ending_asks_first_and_then_insists(yard: Yard) -> None:
    polite, stubborn, stranger = yard.start(SLEEP), yard.start(STUBBORN), yard.start(SLEEP, run_id="other")
    assert end(yard.mark, 0.3) == []
    _reap(polite, stubborn, stranger)
    assert polite.wait(5) == -signal.SIGTERM and stubborn.wait(5) == -signal.SIGKILL
    assert stranger.poll() is None


def test_a_reused_process_id_is_not_signalled(yard: Yard) -> None:
    child = yard.start(SLEEP)
    process = look(child.pid)
    assert process is not None
    assert not send(replace(process, start_ticks=process.start_ticks - 1), signal.SIGKILL)
    assert child.poll() is None
    assert send(process, signal.SIGKILL) and wait_gone(process, 5)
    child.wait()
    assert not send(process, signal.SIGKILL) and look(child.pid) is None


def test_waiting_for_a_process_that_stays_ends_in_time(yard: Yard) -> None:
    process = look(yard.start(SLEEP).pid)
    assert process is not None
    began = time.monotonic()
    assert not wait_gone(process, 0.05) and time.monotonic() - began < 5
