"""How far a model has come.

Promise: bytes are what lies in the cache, whoever put it there; `text` is one line that `plan.looks` of the operator reads.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

KEY = "penstock_model"


@dataclass(frozen=True, slots=True)
class Progress:
    done_bytes: int
    total_bytes: int
    waiting: bool = False  # another worker fetches it into the same cache

    def text(self) -> str:
        return json.dumps({KEY: asdict(self)})


Say = Callable[[Progress], None]


def size_of(file: Path) -> int:
    """Of a file that others may make, rename or remove."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def silent(_: Progress) -> None:
    """For callers whose reader looks elsewhere."""


@contextmanager
def watched(say: Say, look: Callable[[], Progress], every_s: float) -> Iterator[None]:
    """Says how far it is, at the begin, every so often while the block runs, and at its end."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every_s):
            say(look())

    say(look())
    thread = threading.Thread(target=run, name="model-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    say(look())
