"""What lies in a model directory.

Promise: `model_digest` depends on the names and contents of the files an engine or a tokenizer reads and on nothing else; a large
file is read once and again only when its size, modification or change time differs.
"""

import hashlib
import json
import time
from fnmatch import fnmatchcase
from pathlib import Path

from penstock_workers.model.whole import write_whole

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
READ_BY_ENGINES = (
    *WEIGHTS,
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "*.tiktoken",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "*.jinja",
    "*.py",  # remote code is part of the model
)
_REMEMBER_FROM_BYTES = 16 << 20
_SETTLED_AFTER_S = 2.0


def is_read(name: str) -> bool:
    """Whether an engine reads a file of this name, in the model's folder itself."""
    return any(fnmatchcase(name, one) for one in READ_BY_ENGINES)


def model_digest(path: Path, cache_dir: Path | None = None) -> str:
    """The hex sha256 of a model directory. The digests of large files are remembered under `cache_dir`. Blocks while it reads."""
    files = sorted(file for file in path.iterdir() if is_read(file.name) and file.is_file())
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.name}\0{file_digest(file, cache_dir)}\n".encode())
    return whole.hexdigest()


def file_digest(file: Path, cache_dir: Path | None) -> str:
    """The hex sha256 of a file's content."""
    stat = file.stat()
    if cache_dir is None or stat.st_size < _REMEMBER_FROM_BYTES:
        return _content_digest(file)
    identity = [str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    sidecar = cache_dir / "digests" / f"{hashlib.sha256(str(identity[0]).encode()).hexdigest()}.json"
    remembered = _remembered(sidecar)
    if remembered is not None and remembered[:-1] == identity:
        return str(remembered[-1])
    digest = _content_digest(file)
    # A file written within the clock's grain of this moment could change again and keep its times.
    if time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_AFTER_S:
        write_whole(sidecar, json.dumps([*identity, digest]))
    return digest


def _remembered(sidecar: Path) -> list[object] | None:
    try:
        entry = json.loads(sidecar.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return entry if isinstance(entry, list) and len(entry) == 5 else None


def _content_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
