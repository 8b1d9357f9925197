"""AWS Signature Version 4, as S3 reads it.

Promise: pure; equal arguments give equal headers, and AWS's published examples come out to the letter.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Credentials:
    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def canonical_query(query: Mapping[str, str]) -> str:
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def canonical_path(path: str) -> str:
    """Encoded once, and `.` and `..` left alone: both are S3's own rules."""
    return quote(path, safe="/-_.~")


def sign(
    method: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    credentials: Credentials,
    region: str,
    at: datetime,
    service: str = "s3",
    payload_sha256: str = EMPTY_SHA256,
) -> dict[str, str]:
    """`headers` and those that prove them; `host` must be among them. `at` is UTC."""
    stamp = at.strftime("%Y%m%dT%H%M%SZ")
    given = {name.lower(): " ".join(value.split()) for name, value in headers.items()} | {"x-amz-date": stamp}
    if service == "s3":
        given["x-amz-content-sha256"] = payload_sha256
    if credentials.session_token:
        given["x-amz-security-token"] = credentials.session_token
    names = ";".join(sorted(given))
    listed = "".join(f"{name}:{given[name]}\n" for name in sorted(given))
    request = "\n".join((method, canonical_path(path), canonical_query(query), listed, names, payload_sha256))
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{credentials.secret_access_key}".encode()
    for part in (stamp[:8], region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.new(key, to_sign.encode(), "sha256").hexdigest()
    proof = f"AWS4-HMAC-SHA256 Credential={credentials.access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**given, "authorization": proof}
