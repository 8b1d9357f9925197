"""From `spec.model.source` to a model directory on this machine, and the digest of what lies there.

Promise: `resolve` returns a directory with a config.json or raises SourceRefused, whose message names
the field, the source and the reason. `model_digest` depends on the names and contents of the files an
engine or a tokenizer reads and on nothing else.
"""

import hashlib
import json
import os
import time
from fnmatch import fnmatchcase
from pathlib import Path

from penstock_workers.tiny import MODEL_DIR

FIELD = "spec.model.source"
ACCEPTED = "penstock://tiny, file:///PATH, hf://ORG/NAME or hf://ORG/NAME@REVISION"
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


class SourceRefused(Exception):
    """The source cannot become a model directory as it stands; trying again gives the same answer."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)  # both, so that it crosses processes
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{FIELD}: {self.source!r}: {self.reason}"


class SourceUnavailable(SourceRefused):
    """The hub did not answer; trying again may help."""


def resolve(source: str, cache_dir: Path) -> Path:
    """The local model directory of a source; downloads what is not in `cache_dir` yet. Blocks."""
    scheme, separator, rest = source.partition("://")
    if not separator or not rest:
        raise SourceRefused(source, f"not a source; accepted are {ACCEPTED}")
    match scheme:
        case "penstock":
            if rest != "tiny":
                raise SourceRefused(source, "the one built-in model is penstock://tiny")
            found = MODEL_DIR
        case "file":
            found = _local(source, rest)
        case "hf":
            found = _hub(source, rest, cache_dir)
        case "s3" | "pvc":
            raise SourceRefused(source, f"{scheme}:// is not supported yet; accepted are {ACCEPTED}")
        case _:
            raise SourceRefused(source, f"unknown scheme {scheme!r}; accepted are {ACCEPTED}")
    if not (found / "config.json").is_file():
        raise SourceRefused(source, f"{found} is no model directory: it has no config.json")
    return found


def _local(source: str, rest: str) -> Path:
    path = Path(rest)
    if not path.is_absolute():
        raise SourceRefused(source, "the path must be absolute: file:///PATH")
    if not path.exists():
        raise SourceRefused(source, f"{path} does not exist on this machine")
    if not path.is_dir():
        raise SourceRefused(source, f"{path} is not a directory")
    return path


def _hub(source: str, rest: str, cache_dir: Path) -> Path:
    repository, at, revision = rest.partition("@")
    organisation, slash, name = repository.partition("/")
    if not organisation or not slash or not name or "/" in name or (at and not revision):
        raise SourceRefused(source, "must be hf://ORG/NAME or hf://ORG/NAME@REVISION")
    # Imported here: workers that serve a local model start faster and need no hub client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            cache_dir=cache_dir / "hub",
            token=os.environ.get("HF_TOKEN") or None,
            allow_patterns=list(READ_BY_ENGINES),
        )
    except GatedRepoError:
        raise SourceRefused(source, "the hub asks for a token with access to this model (HF_TOKEN)") from None
    except RepositoryNotFoundError:
        raise SourceRefused(source, "the hub has no such model, or HF_TOKEN has no access to it") from None
    except RevisionNotFoundError:
        raise SourceRefused(source, f"the model has no revision {revision!r}") from None
    except HFValidationError as error:
        raise SourceRefused(source, str(error)) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise SourceUnavailable(source, f"the hub cannot be reached: {type(error).__name__}") from error
    return Path(folder)


def model_digest(path: Path, cache_dir: Path | None = None) -> str:
    """The hex sha256 of a model directory. The digests of large files are remembered under `cache_dir`
    and computed anew when a file's size, modification or change time differs. Blocks while it reads."""
    read = [file for file in path.iterdir() if any(fnmatchcase(file.name, one) for one in READ_BY_ENGINES)]
    files = sorted(file for file in read if file.is_file())
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.name}\0{_file_digest(file, cache_dir)}\n".encode())
    return whole.hexdigest()


def _file_digest(file: Path, cache_dir: Path | None) -> str:
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
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        partial = sidecar.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps([*identity, digest]))
        partial.replace(sidecar)  # whole or not at all: several workers of a machine share the folder
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
