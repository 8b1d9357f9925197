"""One fetcher at a time in a cache that several workers share.

Promise: the lock goes with its holder, however that ends; a file system without locks is refused by name, because two fetchers
there would write one file.
"""

import errno
import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock_workers.model.refused import SourceRefused

_POLL_S = 0.5


@contextmanager
def only_one(path: Path, source: str, waiting: Callable[[], None], sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Holds the lock in the block; `waiting` is called again and again until it is had."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            while not _taken(file.fileno()):
                waiting()
                sleep(_POLL_S)
            yield
    except OSError as error:
        raise unusable(source, path.parent, error) from error


def _taken(descriptor: int) -> bool:
    try:
        # Ends with the open file: of NFS too, where the server's lease takes the place of the kernel.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unusable(source: str, folder: Path, error: OSError) -> SourceRefused:
    told = {
        errno.ENOSPC: "is full: give spec.model.cache a larger volume, or remove models from it",
        errno.EDQUOT: "is full (quota): give spec.model.cache a larger volume, or remove models from it",
        errno.EROFS: "is read-only; fetchers write to it",
        errno.EACCES: "may not be written by this user; set the volume's group (fsGroup) or its rights",
        errno.EPERM: "may not be written by this user; set the volume's group (fsGroup) or its rights",
        errno.ENOLCK: "has no file locks, without which two workers would write one file; use another kind of volume",
        errno.ENOTSUP: "has no file locks, without which two workers would write one file; use another kind of volume",
    }.get(error.errno or 0, f"cannot be used: {error.strerror or type(error).__name__}")
    return SourceRefused(source, f"the model cache {folder} {told}", "ModelCacheUnusable")
