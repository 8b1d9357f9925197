"""Builds the test cluster's programs from Go modules, once, into the cache: `python -m kube.build [--tested | NAME...]`.

Promise: one build at a time on the machine, at the lowest priority, with progress; a program is in the cache whole or
not at all; a user's own programs (KUBEBUILDER_ASSETS) come first and are never built.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kube.pins import DISTRIBUTION, PROGRAMS, STAGING, TESTED, Program, cache

Say = Callable[[str], None]


class Missing(Exception):
    """A program is not there and cannot be made here; the message says what would help."""


def find(name: str) -> Path | None:
    """The user's program, else the cached one, else None."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (Path(assets) / name).is_file():
        return Path(assets) / name
    path = PROGRAMS[name].path
    return path if path.is_file() else None


def ensure(names: Sequence[str], say: Say) -> dict[str, Path]:
    """Every program's path; what is missing is built first."""
    missing = [name for name in names if find(name) is None]
    if missing and shutil.which("go") is None:
        raise Missing(f"no Go to build {', '.join(missing)} with, and KUBEBUILDER_ASSETS does not have them")
    for number, name in enumerate(missing, 1):
        with _one_at_a_time("build", say):
            if find(name) is None:
                _build(PROGRAMS[name], f"{number} of {len(missing)}", say)
    return {name: path for name in names if (path := find(name)) is not None}


@contextlib.contextmanager
def _one_at_a_time(what: str, say: Say) -> Iterator[None]:
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{what}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"kube: another {what} is running, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(program: Program, count: str, say: Say) -> None:
    say(f"kube: building {program.name} {program.version} ({count}); the whole cluster takes 12 to 20 minutes, once")
    begun = time.monotonic()
    for left in cache().glob("build-*/"):
        shutil.rmtree(left, ignore_errors=True)  # of a build that was killed: the lock is ours
    with tempfile.TemporaryDirectory(prefix="build-", dir=cache()) as tmp:
        work, made = Path(tmp) / "work", Path(tmp) / "made"
        work.mkdir()
        made.mkdir()
        (work / "go.mod").write_text(_go_mod(program))
        flags = ["-mod=mod", "-trimpath", "-ldflags", f"-s -w {program.ldflags}".strip()]
        _go(["build", *flags, "-o", str(made / program.name), program.package], work)
        for folder, globs in program.files:
            _keep(_module_folder(program, work), globs, made / folder)
        made.rename(program.folder)
    say(f"kube: built {program.name} in {time.monotonic() - begun:.0f} s")


def _go(words: list[str], folder: Path) -> str:
    # Go adds what a bare requirement leaves open; its checksum database answers for the bytes.
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GO111MODULE": "on"}
    done = subprocess.run(["nice", "-n", "19", "go", *words], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise Missing(f"go {words[0]} failed: {done.stderr.strip()[-600:]}")
    return done.stdout


def _go_mod(program: Program) -> str:
    lines = ["module penstock.local/kube", "go 1.26.0", f"require {program.module} {program.version}"]
    if program.module == "k8s.io/kubernetes":
        # The repository replaces its own libraries by folders, which a module download does not hold.
        got = json.loads(_go(["mod", "download", "-json", f"{program.module}@{program.version}"], cache()))
        named = re.findall(r"^\s*(?:require )?(k8s\.io/[\w.-]+) v0\.0\.0(?=\s)", Path(got["GoMod"]).read_text(), re.M)
        lines += [f"replace {name} => {name} {STAGING}" for name in sorted(set(named))]
    return "\n".join(lines) + "\n"


def _module_folder(program: Program, work: Path) -> Path:
    return Path(_go(["list", "-mod=mod", "-m", "-f", "{{.Dir}}", program.module], work).strip())


def _keep(module: Path, globs: Sequence[str], to: Path) -> None:
    to.mkdir()
    for file in (file for glob in globs for file in sorted(module.glob(glob))):
        (to / file.name).write_bytes(file.read_bytes())
    if not any(to.iterdir()):
        raise Missing(f"{module} has none of {', '.join(globs)}")


def distribution(say: Say) -> Path:
    """The folder that holds containerd, runc, the CNI plugins and nft as the distribution lays them out."""
    root = cache() / "distribution"
    if root.is_dir():
        return root
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Missing("no apt-get and dpkg-deb to fetch containerd, runc, the CNI plugins and nftables with")
    say(f"kube: fetching {', '.join(DISTRIBUTION)}")
    with _one_at_a_time("fetch", say), tempfile.TemporaryDirectory(prefix="debs-", dir=cache()) as tmp:
        if root.is_dir():
            return root
        _apt(["download", *DISTRIBUTION], Path(tmp))
        for package in sorted(Path(tmp).glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), f"{tmp}/root"], check=True)
        (Path(tmp) / "root").rename(root)
    return root


def _apt(words: list[str], folder: Path) -> None:
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise Missing(f"apt-get {words[0]} failed: {done.stderr.strip()[-400:]}")


def main(names: Sequence[str]) -> int:
    names = TESTED if tuple(names) == ("--tested",) else names
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown:
        print(f"kube: {', '.join(unknown)}: none of {', '.join(PROGRAMS)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends the compiler with it
    try:
        ensure(names or tuple(PROGRAMS), lambda line: print(line, file=sys.stderr, flush=True))
    except Missing as error:
        print(f"kube: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kube: interrupted; what was built stays", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
