"""A model of a Hugging Face hub, into the cache.

Promise: the folder is whole and each file is the one that the hub tells of, by its digest. huggingface_hub fetches and resumes;
what it leaves open is here: one fetcher at a time in a shared cache, bounded tries, progress, the digests.
"""

import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from penstock_workers.model.again import again, asked_s, last_fetched
from penstock_workers.model.digest import READ_BY_ENGINES, file_digest, is_read
from penstock_workers.model.lock import only_one, unusable
from penstock_workers.model.progress import Progress, Say, size_of, watched
from penstock_workers.model.refused import SourceRefused, SourceUnavailable
from penstock_workers.model.retry import Retry
from penstock_workers.model.whole import write_whole

log = logging.getLogger(__name__)

T = TypeVar("T")

_CHUNK = 1 << 20
_ASK_S = 20.0


@dataclass(frozen=True, slots=True)
class File:
    name: str
    size: int
    blob: str  # git's id
    sha256: str  # of large files; else empty

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob


@dataclass(frozen=True, slots=True)
class Fetcher:
    source: str
    repository: str
    revision: str | None
    cache_dir: Path
    environ: Mapping[str, str]
    say: Say
    retry: Retry
    every_s: float
    sleep: Callable[[float], None] = time.sleep
    u: Callable[[], float] = random.random

    def fetch(self) -> Path:
        """The folder of the revision; where the hub cannot be reached, as it was last fetched."""
        try:
            commit, files = self._again(self._listed)
        except SourceUnavailable as error:
            return last_fetched(self._kept(), error)
        there = self._whole(commit, files)
        if there is None:
            there = self._filled(commit, files)
        if self._last() != commit:
            write_whole(self._note(f"{self.revision or ''}.commit"), commit)
        return there

    def _filled(self, commit: str, files: list[File]) -> Path:
        def look(waiting: bool = False) -> Progress:
            return Progress(sum(map(self._there, files)), sum(one.size for one in files), waiting)

        with only_one(self._note("lock"), self.source, lambda: self.say(look(True)), self.sleep):
            there = self._whole(commit, files, mend=True)
            if there is None:
                with watched(self.say, look, self.every_s):
                    return self._again(lambda: self._fetched(commit, files))
        return there

    def _listed(self) -> tuple[str, list[File]]:
        """The commit, and what of it engines read."""
        with _HubErrors(self.source, self.revision):
            api = self._api()
            commit = str(api.model_info(self.repository, revision=self.revision, timeout=_ASK_S).sha)
            listed = list(api.list_repo_tree(self.repository, revision=commit))
        files = [
            File(one.path, one.size, one.blob_id, one.lfs.sha256 if one.lfs is not None else "")
            for one in listed
            if hasattr(one, "blob_id") and is_read(one.path)
        ]
        if not any(one.name == "config.json" for one in files):
            raise SourceRefused(
                self.source, "the repository has no config.json: it is no model that engines read", "ModelNotFound"
            )
        return commit, files

    def _fetched(self, commit: str, files: list[File]) -> Path:
        with _HubErrors(self.source, self.revision):
            self._snapshot(commit)
        whole = self._whole(commit, files, mend=True)
        if whole is None:
            raise SourceUnavailable(self.source, "the files fetched are not those that the hub tells of", "ModelCorrupt")
        return whole

    def _whole(self, commit: str, files: list[File], mend: bool = False) -> Path | None:
        """The snapshot's folder, where each file is there and is what it should be. `mend`, for the holder of the lock, removes
        those that are not, so that they are fetched again."""
        folder = self._home / "snapshots" / commit
        wrong = [one for one in files if not self._matches(folder / one.name, one)]
        for one in wrong if mend else ():
            if (folder / one.name).exists():
                log.warning("%s of %s does not have the hub's digest: fetching it again", one.name, self.source)
                (folder / one.name).resolve().unlink(missing_ok=True)
                (folder / one.name).unlink(missing_ok=True)
        return None if wrong else folder

    def _matches(self, path: Path, wanted: File) -> bool:
        if not path.exists() or path.stat().st_size != wanted.size:
            return False
        if wanted.sha256:
            return file_digest(path, self.cache_dir) == wanted.sha256
        return _git_id(path) == wanted.blob

    def _there(self, one: File) -> int:
        blob = self._home / "blobs" / one.etag
        # The unfinished first: it may get the other's name in between.
        partial = [size_of(path) for path in blob.parent.glob(f"{one.etag}*.incomplete")]
        return min(one.size, max(*partial, size_of(blob), 0))

    def _note(self, name: str) -> Path:
        return self._cache / ".penstock" / f"{self.repository.replace('/', '--')}.{name.replace('/', '--')}"

    def _last(self) -> str:
        try:
            return self._note(f"{self.revision or ''}.commit").read_text()
        except FileNotFoundError:
            return ""

    def _kept(self) -> Path | None:
        """Only what huggingface_hub knows to be complete."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        commit = self._last()
        if not commit:
            return None
        try:
            return Path(self._snapshot(commit, local_files_only=True))
        except LocalEntryNotFoundError:
            return None

    def _snapshot(self, commit: str, **more: Any) -> str:
        from huggingface_hub import snapshot_download

        found: str = snapshot_download(
            self.repository,
            revision=commit,
            cache_dir=self._cache,
            token=self._token,
            endpoint=self._endpoint,
            allow_patterns=list(READ_BY_ENGINES),
            ignore_patterns=["*/*"],
            **more,
        )
        return found

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self._endpoint, token=self._token)

    def _again(self, attempt: Callable[[], T]) -> T:
        return again(attempt, self.retry, self.sleep, self.u)

    @property
    def _cache(self) -> Path:
        return self.cache_dir / "hub"

    @property
    def _home(self) -> Path:
        return self._cache / f"models--{self.repository.replace('/', '--')}"

    @property
    def _token(self) -> str | bool:
        """Never one that lies in a home directory."""
        return self.environ.get("HF_TOKEN") or False

    @property
    def _endpoint(self) -> str | None:
        return self.environ.get("HF_ENDPOINT") or None


class _HubErrors:
    """Turns what huggingface_hub raises into refusals; its own messages name requests and hosts and are not passed on."""

    def __init__(self, source: str, revision: str | None) -> None:
        self._source, self._revision = source, revision

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None or isinstance(error, SourceRefused):
            return
        refused = self._refused(error)
        if refused is not None:
            raise refused from None

    def _refused(self, error: BaseException) -> SourceRefused | None:
        from huggingface_hub import errors

        source = self._source
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.HFValidationError):
            return SourceRefused(source, str(error))
        if isinstance(error, errors.GatedRepoError):
            return SourceRefused(source, "the hub asks for a token that was granted access to this model", "ModelAccessDenied")
        if isinstance(error, errors.RevisionNotFoundError):
            return SourceRefused(source, f"the model has no revision {self._revision!r}", "ModelNotFound")
        if isinstance(error, errors.RepositoryNotFoundError) and status in (None, 404):
            return SourceRefused(source, "the hub has no such model, or the token has no access to it", "ModelNotFound")
        if status in (401, 403):
            told = "the hub refuses the token, or asks for one: the model is private or does not exist"
            return SourceRefused(source, told, "ModelAccessDenied")
        if isinstance(error, errors.HfHubHTTPError) and status is not None and status < 500 and status not in (408, 429):
            return SourceRefused(source, f"the hub answers {status}")
        if (
            isinstance(error, OSError)
            and error.errno
            and status is None
            and not isinstance(error, ConnectionError | TimeoutError)
        ):
            return unusable(source, Path(error.filename or "."), error)
        # Of several libraries, without a common base: whatever the network does ends here.
        known = isinstance(error, OSError) or type(error).__module__.partition(".")[0] in (
            "httpx",
            "httpx2",
            "httpcore",
            "httpcore2",
        )
        told = f"the hub answers {status}" if status else f"the hub cannot be reached: {type(error).__name__}"
        wait_s = asked_s(error.response.headers.get("Retry-After")) if isinstance(error, errors.HfHubHTTPError) else None
        return SourceUnavailable(source, told, retry_after_s=wait_s) if known else None


def fetch(source: str, cache_dir: Path, environ: Mapping[str, str], say: Say, retry: Retry, every_s: float) -> Path:
    """The local folder of hf://ORG/NAME or hf://ORG/NAME@REVISION. Blocks."""
    repository, at, revision = source.removeprefix("hf://").partition("@")
    repository = repository.rstrip("/")
    organisation, slash, name = repository.partition("/")
    if not organisation or not slash or not name or "/" in name or (at and not revision):
        raise SourceRefused(source, "must be hf://ORG/NAME or hf://ORG/NAME@REVISION")
    # Before its first import, which reads them.
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    try:
        return Fetcher(source, repository, revision or None, cache_dir, environ, say, retry, every_s).fetch()
    except OSError as error:
        raise unusable(source, cache_dir, error) from error


def _git_id(path: Path) -> str:
    made = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            made.update(chunk)
    return made.hexdigest()
