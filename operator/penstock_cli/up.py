"""`penstock up` and `down`."""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from penstock_cli.output import Failure, Usage, say
from penstock_operator.api import LLMService, ManifestError, default_text, load, unsupported, without_effect
from penstock_operator.local import state
from penstock_operator.local.ports import Listen, check
from penstock_operator.local.state import LocalError

_DEFAULTS = Listen()


def up(arguments: argparse.Namespace) -> int:
    service = _read(arguments.file)
    refusals = unsupported(service.spec)
    if refusals:
        more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
        raise Usage(f"{refusals[0]}{more}")
    listen = _listen(arguments)
    try:
        if arguments.detach:
            return _detached(service, arguments)
        for note in without_effect(service.spec):
            say(f"note: {note}")
        from penstock_operator.local.supervisor import supervise

        return supervise(service, listen, say)
    except LocalError as error:
        raise Failure(str(error)) from error


def down(arguments: argparse.Namespace) -> int:
    from penstock_operator.local.stop import down as stop

    try:
        name = stop(arguments.name, say)
    except LocalError as error:
        raise Failure(str(error)) from error
    say(f"{name} is down" if name else "nothing is running")
    return 0


def _read(file: str | None) -> LLMService:
    try:
        return load(Path(file)) if file else load(default_text())
    except ManifestError as error:
        text = str(error)
        raise Usage(text if not file or text.startswith(file) else f"{file}: {text}") from error


def _listen(arguments: argparse.Namespace) -> Listen:
    listen = Listen(arguments.http or _DEFAULTS.http, arguments.grpc or _DEFAULTS.grpc, arguments.reports or _DEFAULTS.reports)
    try:
        check(listen)
    except ValueError as error:
        raise Usage(str(error)) from error
    return listen


def _detached(service: LLMService, arguments: argparse.Namespace) -> int:
    """Runs `up` in a session of its own, repeats what it says until it is ready."""
    log = state.open_folder(service.metadata.name) / "up.log"
    command = [sys.executable, "-m", "penstock_cli.main", "up"]
    for flag in ("file", "http", "grpc", "reports"):
        if getattr(arguments, flag):
            command += [f"--{flag}", getattr(arguments, flag)]
    log.write_bytes(b"")
    with log.open("ab") as output:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        return _repeat(child, log)
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.wait()
        return 1


def _repeat(child: subprocess.Popen[bytes], log: Path) -> int:
    with log.open() as lines:
        while True:
            code = child.poll()
            for line in lines:
                ready = line.startswith("ready ")
                print(line, end="", file=sys.stdout if ready else sys.stderr, flush=True)
                if ready:
                    # Not waited for: it outlives this process on purpose.
                    child.returncode = 0
                    return 0
            if code is not None:
                return code or 1
            time.sleep(0.1)
