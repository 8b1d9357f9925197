"""What is recorded of a local run, where, and who holds it.

Promise: the record is on disk before the first process starts, so that whatever ends this program,
the next one finds what it left; a lock that the kernel releases tells a live run from a dead one.
"""

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from penstock_operator.local.owned import Mark, Process, boot_id, look

_RECORD = "run.json"


class LocalError(RuntimeError):
    """One line for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one service."""

    name: str
    run_id: str
    boot_id: str
    pid: int  # the supervisor
    start_ticks: int  # of the supervisor: every process of the run is younger
    http: str
    grpc: str
    reports: str
    ray_dir: str
    started_unix_s: float
    drain_s: float
    phase: Literal["starting", "ready", "stopping"] = "starting"

    @property
    def mark(self) -> Mark:
        return Mark(self.run_id, self.boot_id, self.start_ticks)

    def supervisor(self) -> Process | None:
        """The process that runs it, None once it is dead."""
        process = look(self.pid) if self.boot_id == boot_id() else None
        return process if process is not None and process.start_ticks == self.start_ticks else None


def root() -> Path:
    """Where all local services keep their state."""
    given = os.environ.get("PENSTOCK_STATE_DIR")
    return Path(given).expanduser().absolute() if given else Path.home() / ".cache/penstock/local"


def open_folder(name: str) -> Path:
    """The service's own folder, private to this user."""
    folder = root() / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(f"PENSTOCK_STATE_DIR: cannot make {folder}: {error.strerror}") from error
    return folder


def names() -> list[str]:
    """Services with a record, live or dead."""
    return sorted(record.parent.name for record in root().glob(f"*/{_RECORD}"))


def read(folder: Path) -> Run | None:
    """The recorded run; None where there is none."""
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text())
        return Run(**{field.name: record[field.name] for field in fields(Run)})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise LocalError(f"{folder / _RECORD}: is not a run's record; remove it once nothing of the run is left") from error


def write(folder: Path, run: Run) -> None:
    """On disk before this returns."""
    path = folder / _RECORD
    draft = path.with_suffix(".draft")
    with draft.open("w") as file:
        os.fchmod(file.fileno(), 0o600)
        json.dump(asdict(run), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def forget(folder: Path, run: Run) -> None:
    """Removes the record and Ray's folder of a run that has ended."""
    remove_ray_folder(run)
    (folder / _RECORD).unlink(missing_ok=True)


def remove_ray_folder(run: Run) -> None:
    """Only a folder that is this user's own and named for the run is removed."""
    path = Path(run.ray_dir)
    try:
        found = path.lstat()
    except OSError:
        return
    if path == ray_folder(run.run_id) and stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
        shutil.rmtree(path, ignore_errors=True)


def ray_folder(run_id: str) -> Path:
    """Short: the Unix socket paths that Ray makes below it may have 107 bytes."""
    return Path("/tmp") / f"ps-{run_id[:8]}"


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """True for the one process that holds the service; the kernel lets go when it dies."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
