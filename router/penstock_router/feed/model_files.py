"""A model's tokenizer, template and configs: asked of a worker once per digest, kept on disk.

Promise: what `fetch` returns is exactly what one worker of this digest sent, whole; a broken or half-written cache
entry is never used, and says so in the log.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import grpc

from penstock_proto.v1.worker_pb2 import ModelFile, ModelRequest

from ..log import event
from ..wire.client import ClientConnection, Collect

log = logging.getLogger("penstock.feed")
MANIFEST = "penstock-manifest.json"
MAX_BYTES = 512 << 20


class ModelFilesError(Exception):
    """The worker did not send a whole model."""


def default_cache_dir() -> Path:
    return Path(os.environ.get("PENSTOCK_CACHE", "~/.cache/penstock")).expanduser() / "models"


class ModelFiles:
    """The cache. Files are keyed by digest alone: equal digests mean equal files."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder or default_cache_dir()

    async def fetch(self, digest: str, connection: ClientConnection) -> dict[str, bytes]:
        """Raises ModelFilesError."""
        known = await asyncio.to_thread(self.read, digest)
        if known is not None:
            return known
        files = await download(digest, connection)
        await asyncio.to_thread(self.write, digest, files)
        return files

    def _entry(self, digest: str) -> Path:
        # A digest comes from a peer: its hash names the folder.
        return self.folder / hashlib.sha256(digest.encode()).hexdigest()

    def read(self, digest: str) -> dict[str, bytes] | None:
        entry = self._entry(digest)
        try:
            manifest = json.loads((entry / MANIFEST).read_text())
            files = {name: (entry / Path(name).name).read_bytes() for name in manifest}
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            event(log, "model cache entry unreadable", logging.WARNING, folder=str(entry), error=type(error).__name__)
            return None
        if {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} != manifest:
            event(log, "model cache entry damaged; fetching it again", logging.WARNING, folder=str(entry))
            with contextlib.suppress(OSError):
                shutil.rmtree(entry)
            return None
        return files

    def write(self, digest: str, files: dict[str, bytes]) -> None:
        entry = self._entry(digest)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
        except OSError as error:
            event(log, "model cache not writable", logging.WARNING, folder=str(self.folder), error=type(error).__name__)
            return
        try:
            for name, data in files.items():
                (made / Path(name).name).write_bytes(data)
            manifest = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            (made / MANIFEST).write_text(json.dumps(manifest))
            made.rename(entry)
        except OSError as error:
            # Another router on this machine may have been first; its entry is as good.
            if not entry.exists():
                event(log, "model cache not writable", logging.WARNING, folder=str(entry), error=type(error).__name__)
            shutil.rmtree(made, ignore_errors=True)


async def download(digest: str, connection: ClientConnection) -> dict[str, bytes]:
    parts: dict[str, list[bytes]] = {}
    whole: set[str] = set()
    wrong: list[str] = []
    total = 0

    def on_message(data: bytes) -> None:
        nonlocal total
        chunk = ModelFile.FromString(data)
        total += len(chunk.data)
        if chunk.model_digest not in ("", digest):
            wrong.append(chunk.model_digest)
        if chunk.name != Path(chunk.name).name or total > MAX_BYTES:
            wrong.append(chunk.name)
            return
        parts.setdefault(chunk.name, []).append(chunk.data)
        if chunk.last:
            whole.add(chunk.name)

    collect = Collect(on_message)
    call = connection.call("/penstock.v1.Worker/Model", collect)
    try:
        call.send(ModelRequest().SerializeToString())
        call.half_close()
        async with asyncio.timeout(60):
            code, message = await collect.result
    except TimeoutError:
        raise ModelFilesError("no answer within 60 s") from None
    finally:
        call.cancel()
    if code is not grpc.StatusCode.OK:
        raise ModelFilesError(f"{code.name}: {message}")
    if wrong or whole != set(parts) or not parts:
        raise ModelFilesError(f"incomplete or unexpected files: {sorted(set(parts) - whole) or wrong or 'none'}")
    return {name: b"".join(data) for name, data in parts.items()}
