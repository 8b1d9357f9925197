"""Runs one LLMService on this machine: a Ray host, a router, and nothing left when it ends.

Promise: 1. the run is recorded before its first process starts; 2. a router that dies is started again;
3. SIGUSR1 applies the replicas that are written down as wanted; 4. whatever ends the service, every process of the run is ended
and proven gone before the record is.
"""

import json
import os
import select
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from penstock_operator.api import LLMService
from penstock_operator.local import ask, launch, owned, progress, rescale, state
from penstock_operator.local.desire import Desired, desire
from penstock_operator.local.environment import child_environment, ray_environment
from penstock_operator.local.ports import Listen, settle
from penstock_operator.local.state import LocalError, Run

Say = Callable[[str], None]

_TICK_S = 0.2
_ASK_EVERY_S = 0.4
_SHORT_LIVES = 3
_END_GRACE_S = 2.0
_RAY_END_S = 40.0


@dataclass(frozen=True, slots=True)
class Programs:
    """The modules that are run."""

    router: str = "penstock_router.main"
    ray_host: str = "penstock_operator.local.ray_host"


class _Asked:
    """Signals received: the first asks to drain, the second to end at once."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.times += 1


def supervise(service: LLMService, listen: Listen, say: Say, programs: Programs = Programs()) -> int:
    """Blocks until the service has ended; 0 when it was asked to, 1 when it failed. One that runs already gets other replicas."""
    folder = state.open_folder(service.metadata.name)
    with state.lock(folder) as held:
        if not held:
            return rescale.rescale(service, folder, say)
        clean_up(folder, say)
        listen = settle(listen)
        run = _record(service, listen)
        supervisor = _Supervisor(service, run, folder, say, programs)
        state.write(folder, run)
        return supervisor.run()


def clean_up(folder: Path, say: Say) -> None:
    """Ends what a dead run left. To be called with the folder's lock held."""
    run = state.read(folder)
    if run is None:
        return
    left = owned.find(run.mark)
    if left:
        say(f"an earlier run of {run.name} died and left {len(left)} processes; ending them")
        _must_end(run, _END_GRACE_S)
    state.forget(folder, run)


def _must_end(run: Run, grace_s: float) -> None:
    survivors = owned.end(run.mark, grace_s)
    if survivors:
        pids = ", ".join(str(one.pid) for one in survivors)
        raise LocalError(f"processes of {run.name} survive SIGKILL: {pids}")


def _record(service: LLMService, listen: Listen) -> Run:
    run_id = uuid.uuid4().hex
    me = owned.look(os.getpid())
    assert me is not None
    return Run(
        name=service.metadata.name,
        run_id=run_id,
        boot_id=owned.boot_id(),
        pid=me.pid,
        start_ticks=me.start_ticks,
        http=listen.http,
        grpc=listen.grpc,
        reports=listen.reports,
        ray_dir=str(state.ray_folder(run_id)),
        started_unix_s=time.time(),
        drain_s=service.spec.rollout.drain_timeout,
    )


class _Supervisor:
    def __init__(self, service: LLMService, run: Run, folder: Path, say: Say, programs: Programs) -> None:
        self._service, self._run, self._folder, self._say, self._programs = service, run, folder, say, programs
        self._desired: Desired = desire(service, run, folder, dict(os.environ))
        self._asked = _Asked()
        self._changed = _Asked()
        self._ray: subprocess.Popen[bytes] | None = None
        self._router: subprocess.Popen[bytes] | None = None
        self._router_began_s = 0.0
        self._router_due_s: float | None = None
        self._restarts = progress.Restarts()
        self._pending = b""
        self._narrator = progress.Narrator(self._desired.expected, time.monotonic())

    def run(self) -> int:
        before = {one: signal.signal(one, self._asked) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._changed)
        code = 1
        try:
            self._start()
            code = self._serve()
        except LocalError as error:
            self._say(f"error: {error}")
        finally:
            self._stop()
            for number, handler in before.items():
                signal.signal(number, handler)
        return code

    def _start(self) -> None:
        Path(self._run.ray_dir).mkdir(mode=0o700)
        rescale.write(self._folder, rescale.RUNNING, self._service)
        for name, config in (("router", self._desired.router), ("ray", self._desired.ray)):
            (self._folder / f"{name}.json").write_text(json.dumps(config, indent=1))
            (self._folder / f"{name}.log").write_bytes(b"")
        environment = ray_environment(self._run, os.environ)
        arguments = [str(self._folder / "ray.json")]
        self._ray = launch.start(self._programs.ray_host, arguments, environment, self._folder / "ray.log", pipe=True)
        assert self._ray.stdout is not None
        os.set_blocking(self._ray.stdout.fileno(), False)
        self._start_router()

    def _start_router(self) -> None:
        environment = child_environment(self._run, os.environ)
        arguments = ["--config", str(self._folder / "router.json")]
        self._router = launch.start(self._programs.router, arguments, environment, self._folder / "router.log")
        self._router_began_s, self._router_due_s = time.monotonic(), None

    def _serve(self) -> int:
        """Until a signal asks for the end (0) or the service fails (LocalError)."""
        ready, asked_router_s = False, 0.0
        while not self._asked.times:
            self._read_events()
            self._watch_ray()
            self._watch_router(ready)
            if ready and self._changed.times:
                self._rescale()
            now_s = time.monotonic()
            if not ready and now_s - asked_router_s >= _ASK_EVERY_S:
                asked_router_s = now_s
                ready = self._look_for_workers()
        return 0

    def _look_for_workers(self) -> bool:
        workers = ask.workers(self._run.grpc) if self._router_due_s is None else ()
        now_s = time.monotonic()
        for line in self._narrator.workers(workers, now_s):
            self._say(line)
        lacking = progress.missing(self._desired.expected, workers)
        if lacking:
            for line in self._narrator.waiting(lacking, now_s):
                self._say(line)
            return False
        self._run = replace(self._run, phase="ready")
        state.write(self._folder, self._run)
        self._say(f"ready http={self._run.http} grpc={self._run.grpc}")
        return True

    def _rescale(self) -> None:
        self._changed.times = 0
        try:
            wanted = rescale.read(self._folder, rescale.WANTED)
        except LocalError as error:
            self._say(f"error: {error}")
            return
        if not rescale.only_replicas_differ(self._service, wanted):
            self._say("what is wanted differs in more than replicas: nothing is changed")
            return
        self._service, self._desired = wanted, desire(wanted, self._run, self._folder, dict(os.environ))
        (self._folder / "ray.json").write_text(json.dumps(self._desired.ray, indent=1))
        rescale.write(self._folder, rescale.RUNNING, wanted)
        self._say(f"scaling to {', '.join(f'{count} {pool}' for pool, count in self._desired.expected.items())}")
        assert self._ray is not None
        self._ray.send_signal(signal.SIGUSR1)

    def _read_events(self) -> None:
        assert self._ray is not None and self._ray.stdout is not None
        pipe = self._ray.stdout.fileno()
        with suppress(InterruptedError):
            readable, _, _ = select.select([pipe], [], [], _TICK_S)
        with suppress(BlockingIOError):
            news = os.read(pipe, 65536) if readable else b""
            if readable and not news:
                time.sleep(_TICK_S)  # closed: the exit of the process follows
            *lines, self._pending = (self._pending + news).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))

    def _hear(self, event: dict[str, Any]) -> None:
        for line in self._narrator.event(event, time.monotonic()):
            self._say(line)
        failed = event["event"] == "serve" and event["state"] == "DEPLOY_FAILED"
        if failed:
            raise LocalError(f"the workers did not start; see {self._run.ray_dir} and {self._folder / 'ray.log'}")

    def _watch_ray(self) -> None:
        assert self._ray is not None
        code = self._ray.poll()
        if code is not None:
            raise LocalError(f"the Ray host ended unexpectedly ({_ending(code)}): {self._last_words('ray.log')}")

    def _watch_router(self, ready: bool) -> None:
        now_s = time.monotonic()
        if self._router_due_s is not None:
            if now_s >= self._router_due_s:
                self._start_router()
            return
        assert self._router is not None
        code = self._router.poll()
        if code is None:
            return
        self._restarts, wait_s = progress.restart(self._restarts, now_s - self._router_began_s, now_s)
        if not ready and self._restarts.deaths >= _SHORT_LIVES:
            raise LocalError(f"the router does not start ({_ending(code)}): {self._last_words('router.log')}")
        self._router_due_s = now_s + wait_s
        self._say(f"the router ended ({_ending(code)}); starting it again")

    def _last_words(self, log: str) -> str:
        return " | ".join(launch.tail(self._folder / log, 2)) or f"{self._folder / log} is empty"

    def _stop(self) -> None:
        """Router first, so that open answers end on workers that still run; then Ray; then what is left."""
        self._run = replace(self._run, phase="stopping")
        with suppress(OSError):  # a full disk must not keep the processes alive
            state.write(self._folder, self._run)
        if self._router is not None and self._router.poll() is None:
            self._say(f"draining: open answers get {self._run.drain_s:g} s to end; a second signal ends them now")
            self._end_child(self._router, self._run.drain_s + 5)
        if self._ray is not None and self._ray.poll() is None:
            self._end_child(self._ray, _RAY_END_S)
        _must_end(self._run, 1.0 if self._asked.times > 1 else _END_GRACE_S)
        state.forget(self._folder, self._run)
        self._say("ended; no process is left")

    def _end_child(self, child: subprocess.Popen[bytes], limit_s: float) -> None:
        child.terminate()
        until_s = time.monotonic() + limit_s
        while child.poll() is None and time.monotonic() < until_s and self._asked.times < 2:
            time.sleep(0.05)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
