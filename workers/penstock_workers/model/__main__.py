"""Fetches a model before its engines start: `python -m penstock_workers.model SOURCE --cache DIR [--secret NAME]`.

Promise: progress goes to stdout, a JSON line at a time; why it failed goes to the termination message, from where the operator
reads it. Exits 0 when the model lies in the cache, 1 when trying again may help, 2 otherwise.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock_workers.model.progress import KEY, Progress
from penstock_workers.model.refused import SourceRefused, SourceUnavailable
from penstock_workers.model.source import resolve

# Of the Secret that model.secretRef names.
KEYS: Mapping[str, tuple[str, ...]] = {"hf": ("token",), "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="penstock_workers.model", description="Fetches a model into the cache.")
    parser.add_argument("source", help="hf://, s3://, file:// or penstock://tiny")
    parser.add_argument("--cache", required=True, type=Path, metavar="DIR", help="where it is kept")
    parser.add_argument("--secret", default="", metavar="NAME", help="the Secret with the credentials, for messages")
    parser.add_argument("--termination", type=Path, default=Path("/dev/termination-log"), metavar="FILE")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        found = resolve(args.source, args.cache.expanduser(), _say)
    except SourceRefused as error:
        said = {KEY: {"reason": error.code, "message": f"{error}{_credentials(error, args.secret)}"}}
        print(json.dumps(said), file=sys.stderr)
        _leave(args.termination, json.dumps(said))
        return 1 if isinstance(error, SourceUnavailable) else 2
    print(json.dumps({KEY: {"ready": str(found)}}), flush=True)
    return 0


def _say(progress: Progress) -> None:
    print(progress.text(), flush=True)


def _credentials(error: SourceRefused, secret: str) -> str:
    """Where the reader would mend it."""
    keys = KEYS.get(error.source.partition("://")[0])
    if keys is None or error.code not in ("ModelAccessDenied", "ModelNotFound"):
        return ""
    named = f"key{'s' * (len(keys) > 1)} {' and '.join(keys)}"
    if secret:
        return f"; credentials are those of Secret {secret}, {named}"
    return f"; no credentials are given: name a Secret with {named} in spec.model.secretRef"


def _leave(path: Path, text: str) -> None:
    try:
        path.write_text(text[:4000])  # Kubernetes keeps 4096 bytes
    except OSError as error:
        # Not in a container: stderr has it.
        logging.getLogger(__name__).debug("no termination message: %s", error)


if __name__ == "__main__":
    sys.exit(main())
