"""What S3 is asked: which objects there are, and their bytes.

Promise: requests are signed where credentials are given, and never follow a redirect; every failure is a SourceRefused that says
whether trying again may help. Nothing of an answer but S3's own code and message is told.
"""

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from penstock_workers.model import sigv4
from penstock_workers.model.again import asked_s
from penstock_workers.model.refused import SourceRefused, SourceUnavailable

_TIMEOUT_S = 30.0
_MOST_ERROR_BYTES = 64 << 10
_AGAIN = {408, 429, 500, 502, 503, 504}
_DENIED = {401, 403}
_ELSEWHERE = {301, 302, 307, 308}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says, by the names that AWS's own tools read."""

    endpoint: str
    region: str
    credentials: sigv4.Credentials | None

    @staticmethod
    def of(environ: Mapping[str, str]) -> "Settings":
        region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        given = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or f"https://s3.{region}.amazonaws.com"
        key, secret = environ.get("AWS_ACCESS_KEY_ID", ""), environ.get("AWS_SECRET_ACCESS_KEY", "")
        proof = sigv4.Credentials(key, secret, environ.get("AWS_SESSION_TOKEN", "")) if key and secret else None
        return Settings(given.rstrip("/"), region, proof)


@dataclass(frozen=True, slots=True)
class Object:
    key: str
    size: int
    etag: str  # without quotes


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect would be followed with a signature of another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay)


@dataclass(frozen=True, slots=True)
class Bucket:
    """`source` is what messages name."""

    source: str
    name: str
    settings: Settings
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def objects(self, prefix: str) -> list[Object]:
        """Those directly below the prefix, which ends with a slash or is empty."""
        found: list[Object] = []
        query = {"list-type": "2", "prefix": prefix, "delimiter": "/"}
        while True:
            with self.ask("GET", "", query) as answer:
                page = _page(self.source, answer.read())
            for one in page.iter("Contents"):
                size, etag = int(one.findtext("Size") or 0), (one.findtext("ETag") or "").strip('"')
                found.append(Object(one.findtext("Key") or "", size, etag))
            token = page.findtext("NextContinuationToken")
            if page.findtext("IsTruncated") != "true" or not token:
                return found
            query["continuation-token"] = token

    def part_bytes(self, key: str, parts: int) -> int | None:
        """The size of an upload's parts, or None where the server does not say so for sure."""
        try:
            with self.ask("HEAD", key, {"partNumber": "1"}) as answer:
                said, size = answer.headers.get("x-amz-mp-parts-count"), answer.headers.get("Content-Length")
        except SourceRefused:
            return None
        return int(size) if said == str(parts) and size else None

    def ask(
        self, method: str, key: str, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> AbstractContextManager[http.client.HTTPResponse]:
        given, proof = self.settings, self.settings.credentials
        parts, query = urlsplit(given.endpoint), query or {}
        path = f"{parts.path.rstrip('/')}/{self.name}" + (f"/{key}" if key else "")
        sent = {"host": parts.netloc, **(headers or {})}
        if proof is not None:
            sent = sigv4.sign(method, path, query, sent, proof, given.region, self.now())
        listed = sigv4.canonical_query(query)
        url = f"{parts.scheme}://{parts.netloc}{sigv4.canonical_path(path)}" + (f"?{listed}" if listed else "")
        request = urllib.request.Request(url, method=method, headers=sent)
        try:
            answer: http.client.HTTPResponse = _OPENER.open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, error.headers, error.read(_MOST_ERROR_BYTES)) from None
        except (OSError, http.client.HTTPException) as error:
            raise self.unreachable(error) from error
        return answer

    def unreachable(self, error: Exception) -> SourceUnavailable:
        why = getattr(error, "reason", None) or error
        told = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why)
        return SourceUnavailable(self.source, f"{self.settings.endpoint} cannot be reached: {told}")

    def _refusal(self, status: int, headers: Message, body: bytes) -> SourceRefused:
        code, message = _said(body)
        told = f"{self.settings.endpoint} answers {status} {code}: {message}".rstrip(": ")
        region = headers.get("x-amz-bucket-region")
        if status in _ELSEWHERE or code == "AuthorizationHeaderMalformed":
            named = f"the bucket is in {region}: set AWS_REGION" if region else "set AWS_REGION or AWS_ENDPOINT_URL"
            return SourceRefused(self.source, f"{told}; {named}")
        if status in _AGAIN:
            return SourceUnavailable(self.source, told, retry_after_s=asked_s(headers.get("Retry-After")))
        if status == 412:
            return SourceUnavailable(self.source, f"{told}; an object was replaced while it was fetched", "ModelCorrupt")
        if status in _DENIED:
            keyless = "" if self.settings.credentials else "; no credentials are given"
            return SourceRefused(self.source, f"{told}{keyless}", "ModelAccessDenied")
        if status == 404:
            return SourceRefused(self.source, f"{told}; there is no such bucket or object", "ModelNotFound")
        return SourceRefused(self.source, told)


def _page(source: str, text: bytes) -> ElementTree.Element:
    try:
        page = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise SourceUnavailable(source, "the list of the bucket is cut short or no XML") from None
    for one in page.iter():
        one.tag = one.tag.rpartition("}")[2]  # servers differ in the namespace they give
    return page


def _said(body: bytes) -> tuple[str, str]:
    text = body.decode(errors="replace")
    found = [re.search(f"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message")]
    code, message = (one[1] if one else "" for one in found)
    return code, message[:120]
