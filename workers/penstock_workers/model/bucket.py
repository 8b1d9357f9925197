"""A model in an S3 bucket, into the cache.

Promise: a folder under its version's name is whole, its files checked against what the bucket said of them; until then it has
another name. What an earlier fetcher got is gone on from, never fetched twice, and never trusted without a check.
"""

import hashlib
import http.client
import json
import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from penstock_workers.model.again import again, last_fetched
from penstock_workers.model.digest import is_read
from penstock_workers.model.lock import only_one, unusable
from penstock_workers.model.progress import Progress, Say, size_of, watched
from penstock_workers.model.refused import SourceRefused, SourceUnavailable
from penstock_workers.model.retry import Retry
from penstock_workers.model.s3 import Bucket, Object, Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

_CHUNK = 1 << 20
_AT_ONCE = 8
_PARTIAL = ".partial"
_NOT_A_SUM = ("aws:kms", "aws:kms:dsse")  # encryptions under which an ETag is no MD5


@dataclass(frozen=True, slots=True)
class Fetcher:
    bucket: Bucket
    prefix: str
    home: Path
    say: Say
    retry: Retry
    every_s: float
    sleep: Callable[[float], None] = time.sleep
    u: Callable[[], float] = random.random
    over: threading.Event = field(default_factory=threading.Event)  # one file failed for good: the others stop

    def fetch(self) -> Path:
        """The folder of the version that the bucket holds now; where the bucket cannot be reached, of the last one fetched."""
        try:
            wanted = self._again(self._listed)
        except SourceUnavailable as error:
            return last_fetched(self._kept(), error)
        folder = self.home / _version(wanted)
        if folder.is_dir():
            return folder
        partial = folder.with_name(folder.name + _PARTIAL)

        def look(waiting: bool = False) -> Progress:
            return Progress(sum(_there(partial, one) for one in wanted), sum(one.size for one in wanted), waiting)

        with only_one(self.home / ".lock", self.bucket.source, lambda: self.say(look(True)), self.sleep):
            if not folder.is_dir():
                with watched(self.say, look, self.every_s):
                    self._fill(partial, wanted)
                partial.rename(folder)
        return folder

    def _listed(self) -> list[Object]:
        found = [one for one in self.bucket.objects(self.prefix) if is_read(_name(one))]
        if not any(_name(one) == "config.json" for one in found):
            where = f"bucket {self.bucket.name} has no config.json under {self.prefix or '/'!r}"
            raise SourceRefused(self.bucket.source, f"{where}: there is no model", "ModelNotFound")
        return sorted(found, key=lambda one: one.key)

    def _kept(self) -> Path | None:
        folders = [one for one in self.home.glob("*") if one.is_dir() and one.suffix != _PARTIAL]
        return max(folders, key=lambda one: one.stat().st_mtime, default=None)

    def _fill(self, partial: Path, wanted: list[Object]) -> None:
        for other in self.home.glob(f"*{_PARTIAL}"):
            if other != partial:
                shutil.rmtree(other)  # of a version that the bucket no longer holds
        partial.mkdir(exist_ok=True)
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="model-fetch") as pool:
            for fetched in [pool.submit(self._object, partial, one) for one in wanted]:
                try:
                    fetched.result()
                except BaseException:
                    self.over.set()
                    pool.shutdown(cancel_futures=True, wait=False)
                    raise

    def _object(self, folder: Path, wanted: Object) -> None:
        done = folder / _name(wanted)
        if done.exists():
            return
        part = done.with_name(done.name + ".part")
        unchecked: list[str] = []

        def once() -> None:
            headers = self._bytes(part, wanted)
            unchecked[:] = self._check(part, wanted, headers)

        self._again(once, lambda: size_of(part))
        if unchecked:
            log.warning("%s of %s: its size alone was checked: %s", done.name, self.bucket.source, unchecked[0])
        part.rename(done)

    def _bytes(self, part: Path, wanted: Object) -> str:
        """Appends what is missing; returns how the object is encrypted."""
        have = size_of(part)
        if have > wanted.size:
            part.unlink()
            have = 0
        if have == wanted.size:
            part.touch()
            with self.bucket.ask("HEAD", wanted.key) as answer:
                return str(answer.headers.get("x-amz-server-side-encryption", ""))
        headers = {"if-match": f'"{wanted.etag}"', "range": f"bytes={have}-"}
        with self.bucket.ask("GET", wanted.key, headers=headers) as answer, part.open("ab") as file:
            if answer.status != 206 or not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
                file.truncate(0)  # the server gave all of it
            try:
                while chunk := self._read(answer):
                    file.write(chunk)
            finally:
                file.flush()
                os.fsync(file.fileno())
            encryption = str(answer.headers.get("x-amz-server-side-encryption", ""))
        if size_of(part) < wanted.size:
            raise SourceUnavailable(self.bucket.source, f"{wanted.key}: the answer ended before its last byte")
        return encryption

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        if self.over.is_set():
            raise SourceUnavailable(self.bucket.source, "another file of the model cannot be had")
        try:
            return answer.read(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise self.bucket.unreachable(error) from error

    def _check(self, part: Path, wanted: Object, encryption: str) -> list[str]:
        """Raises where the bytes are not the bucket's; returns why they could not be compared."""
        if size_of(part) == wanted.size:
            digest, _, parts = wanted.etag.partition("-")
            if encryption in _NOT_A_SUM or len(digest) != 32:
                return [f"its ETag is no MD5 ({encryption or wanted.etag})"]
            size = self.bucket.part_bytes(wanted.key, int(parts)) if parts.isdigit() else wanted.size
            if size is None:
                return ["the server does not tell the sizes of its parts"]
            if _etag(part, max(1, size), bool(parts)) == wanted.etag:
                return []
        part.unlink()
        told = f"{wanted.key}: the bytes fetched are not those that the bucket tells of"
        raise SourceUnavailable(self.bucket.source, told, "ModelCorrupt")

    def _again(self, attempt: Callable[[], T], gained: Callable[[], int] = lambda: 0) -> T:
        return again(attempt, self.retry, self.sleep, self.u, gained, self.over.is_set)


def fetch(source: str, cache_dir: Path, settings: Settings, say: Say, retry: Retry, every_s: float) -> Path:
    """The local folder of s3://BUCKET/PATH. Blocks."""
    name, _, path = source.removeprefix("s3://").partition("/")
    prefix = path.strip("/") + "/" if path.strip("/") else ""
    mark = hashlib.sha256(f"{settings.endpoint} {name} {prefix}".encode()).hexdigest()[:16]
    home = cache_dir / "s3" / f"{name}-{mark}"
    try:
        return Fetcher(Bucket(source, name, settings), prefix, home, say, retry, every_s).fetch()
    except OSError as error:
        raise unusable(source, cache_dir, error) from error


def _name(one: Object) -> str:
    return one.key.rpartition("/")[2]


def _version(wanted: list[Object]) -> str:
    text = json.dumps([(_name(one), one.size, one.etag) for one in wanted])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _there(partial: Path, one: Object) -> int:
    done = partial / _name(one)
    # The unfinished first: it may get the other's name in between.
    return max(min(one.size, size_of(done.with_name(done.name + ".part"))), size_of(done))


def _etag(file: Path, part_bytes: int, composed: bool) -> str:
    """As S3 makes it: the MD5, or the MD5 of the parts' MD5s and their number."""
    sums: list[bytes] = []
    with file.open("rb") as stream:
        while True:
            one, left = hashlib.md5(usedforsecurity=False), part_bytes
            while left and (chunk := stream.read(min(_CHUNK, left))):
                one.update(chunk)
                left -= len(chunk)
            if left == part_bytes and sums:
                break
            sums.append(one.digest())
            if left:
                break
    if not composed:
        return sums[0].hex()
    return f"{hashlib.md5(b''.join(sums), usedforsecurity=False).hexdigest()}-{len(sums)}"
