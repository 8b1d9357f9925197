"""A small file, whole or not there at all.

Promise: readers see the old text or the new one, whoever else writes at the same time: pods that share a volume have equal
process ids, so the name of the unfinished file is drawn.
"""

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)
