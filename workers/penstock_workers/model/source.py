"""From `spec.model.source` to a model directory on this machine.

Promise: `resolve` returns a directory with a config.json or raises SourceRefused, whose message names the field, the source and
the reason.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from penstock_workers.model import bucket, hub
from penstock_workers.model.progress import Say, silent
from penstock_workers.model.refused import SourceRefused
from penstock_workers.model.retry import Retry
from penstock_workers.model.s3 import Settings
from penstock_workers.tiny import MODEL_DIR

ACCEPTED = "penstock://tiny, file:///PATH, hf://ORG/NAME, hf://ORG/NAME@REVISION or s3://BUCKET/PATH"
SAY_EVERY_S = 1.0


def resolve(
    source: str,
    cache_dir: Path,
    say: Say = silent,
    environ: Mapping[str, str] = os.environ,
    retry: Retry | None = None,
    every_s: float = SAY_EVERY_S,
) -> Path:
    """The local model directory of a source; fetches what is not in `cache_dir` yet. Blocks."""
    scheme, separator, rest = source.partition("://")
    if not separator or not rest:
        raise SourceRefused(source, f"not a source; accepted are {ACCEPTED}")
    tries = retry or Retry()
    match scheme:
        case "penstock":
            if rest != "tiny":
                raise SourceRefused(source, "the one built-in model is penstock://tiny")
            found = MODEL_DIR
        case "file":
            found = _local(source, rest)
        case "hf":
            found = hub.fetch(source, cache_dir, environ, say, tries, every_s)
        case "s3":
            found = bucket.fetch(source, cache_dir, Settings.of(environ), say, tries, every_s)
        case "pvc":
            raise SourceRefused(source, f"pvc:// is Kubernetes', where the claim is mounted; accepted are {ACCEPTED}")
        case _:
            raise SourceRefused(source, f"unknown scheme {scheme!r}; accepted are {ACCEPTED}")
    if not (found / "config.json").is_file():
        raise SourceRefused(source, f"{found} is no model directory: it has no config.json", "ModelNotFound")
    return found


def _local(source: str, rest: str) -> Path:
    path = Path(rest)
    if not path.is_absolute():
        raise SourceRefused(source, "the path must be absolute: file:///PATH")
    if not path.exists():
        raise SourceRefused(source, f"{path} does not exist on this machine", "ModelNotFound")
    if not path.is_dir():
        raise SourceRefused(source, f"{path} is not a directory")
    return path
