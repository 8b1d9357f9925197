"""`make demo`: the built-in service on this machine, a chat through it, and nothing left running.

Promise: it exits 0 only after every answer came and no process of its run is left, proven by a look at
all processes of this machine.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from penstock_cli.generate import Timed, stream
from penstock_cli.output import seconds, table
from penstock_client import Client, PenstockError
from penstock_operator.local import launch, owned, state
from penstock_operator.local.owned import Mark
from penstock_operator.local.ports import Listen, is_free, split
from penstock_operator.local.state import LocalError

_START_LIMIT_S = 600.0
_END_LIMIT_S = 120.0
_MAX_TOKENS = 48


class DemoError(Exception):
    """One line."""


def main() -> int:
    began_s = time.monotonic()
    _use_own_state()
    service = _Service()
    try:
        address = service.start()
        started_s = time.monotonic() - began_s
        turns = _chat(address)
        print(_summary(turns))
        print(f"started in {started_s:.1f} s; the whole demo took {time.monotonic() - began_s:.1f} s so far")
        code = 0
    except (DemoError, LocalError, PenstockError) as error:
        print(f"demo: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 1
    finally:
        clean = service.stop()
    return code if clean else 1


def _use_own_state() -> None:
    """The demo neither sees nor disturbs a service that the user runs."""
    base = os.environ.get("PENSTOCK_STATE_DIR")
    os.environ["PENSTOCK_STATE_DIR"] = str(Path(base) / "demo" if base else Path.home() / ".cache/penstock/demo")
    for name in ("PENSTOCK_ADDRESS", "PENSTOCK_API_KEY"):
        os.environ.pop(name, None)


class _Service:
    """`penstock up` as a child process."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._mark: Mark | None = None

    def start(self) -> str:
        """The gRPC address, once requests will be answered."""
        arguments = ["up"]
        for flag in ("http", "grpc", "reports"):
            host, port = split(flag, getattr(Listen(), flag))
            arguments += [f"--{flag}", f"{host}:{port if is_free(host, port) else 0}"]
        # Told to drain when the demo dies, so that even a kill -9 of the demo leaves nothing.
        self._child = launch.start("penstock_cli.main", arguments, os.environ, None, pipe=True)
        alarm = threading.Timer(_START_LIMIT_S, self._child.terminate)
        alarm.start()
        try:
            return self._until_ready()
        finally:
            alarm.cancel()

    def _until_ready(self) -> str:
        assert self._child is not None and self._child.stdout is not None
        for raw in self._child.stdout:
            line = raw.decode().strip()
            print(line, flush=True)
            if line.startswith("ready "):
                run = state.read(state.root() / _only_name())
                self._mark = run.mark if run else None
                return dict(part.split("=", 1) for part in line.split()[1:])["grpc"]
        raise DemoError("the service did not start")

    def stop(self) -> bool:
        """Ends the service; True where nothing of it is left."""
        if self._child is None:
            return True
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave the service behind
        mark = self._mark or _recorded_mark()
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        left = owned.find(mark) if mark else []
        if left:
            print(f"demo: {len(left)} processes are left: {', '.join(str(one.pid) for one in left)}", file=sys.stderr)
            return False
        print("nothing is left running")
        return True


def _only_name() -> str:
    names = state.names()
    if len(names) != 1:
        raise DemoError(f"expected one recorded service, found {len(names)}")
    return names[0]


def _recorded_mark() -> Mark | None:
    names = state.names()
    run = state.read(state.root() / names[0]) if names else None
    return run.mark if run else None


def _chat(address: str) -> list[Timed]:
    """One conversation: every turn sends what was said before, which the workers have cached."""
    messages: list[dict[str, str]] = []
    turns = []
    with Client(address) as client:
        for question in _questions():
            messages.append({"role": "user", "content": question})
            print(f"\nuser       {question}\nassistant  ", end="", flush=True)
            timed = stream(
                client,
                {"messages": messages, "max_tokens": _MAX_TOKENS, "temperature": 0.0, "explain": True},
                120.0,
                show=True,
            )
            print("\n" + "\n".join(f"  {line}" for line in _told(timed)))
            messages.append({"role": "assistant", "content": timed.answer.text})
            turns.append(timed)
    return turns


def _questions() -> list[str]:
    text = resources.files("penstock_workers.tiny").joinpath("known_answers.json").read_text()
    return [turn["user"] for turn in json.loads(text)["chat"]]


def _told(timed: Timed) -> list[str]:
    usage, placement = timed.answer.usage, timed.answer.placement
    workers = " -> ".join(f"{leg.worker} ({leg.kind})" for leg in placement.legs) if placement else "unknown"
    return [
        f"served by {workers}",
        f"prompt {usage.prompt_tokens} tokens: {usage.cached_tokens} cached, {usage.transferred_tokens} transferred, "
        f"{usage.computed_tokens} computed; answer {usage.completion_tokens} tokens",
        f"TTFT {seconds(timed.ttft_s)}, TPOT {seconds(timed.tpot_s)}",
    ]


def _summary(turns: Sequence[Timed]) -> str:
    rows = [
        [
            str(number),
            timed.answer.placement.kind if timed.answer.placement else "",
            str(timed.answer.usage.prompt_tokens),
            str(timed.answer.usage.cached_tokens),
            str(timed.answer.usage.transferred_tokens),
            str(timed.answer.usage.computed_tokens),
            seconds(timed.ttft_s),
            seconds(timed.tpot_s),
        ]
        for number, timed in enumerate(turns, 1)
    ]
    header = ["turn", "placement", "prompt", "cached", "transferred", "computed", "TTFT", "TPOT"]
    return "\n" + "\n".join(table(header, rows)) + "\n"


if __name__ == "__main__":
    sys.exit(main())
