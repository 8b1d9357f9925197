"""Stand-ins for where models come from, on loopback: a Hugging Face hub, an S3 server.

Promise: they answer as huggingface_hub and an S3 client need, check tokens and signatures, and fail as they are told to.
"""

import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from penstock_workers.model import sigv4

FILES = {
    "config.json": b'{"architectures": ["Fake"]}',
    "tokenizer.json": b"{}" * 5_000,
    "model-00001-of-00002.safetensors": bytes(range(256)) * 4_000,
    "model-00002-of-00002.safetensors": b"weights" * 40_000,
}
UNREAD = {"README.md": b"words", "onnx/config.json": b"another", "original.pth": b"not read" * 100}


@dataclass
class Faults:
    """Each is used up as it happens."""

    refuse: int = 0  # requests answered with 503
    cut: dict[str, int] = field(default_factory=dict)  # file -> bytes after which its next answer ends
    spoil: dict[str, int] = field(default_factory=dict)  # file -> answers with wrong bytes
    retry_after_s: int | None = None


@dataclass
class Server:
    files: dict[str, bytes] = field(default_factory=lambda: {**FILES, **UNREAD})
    faults: Faults = field(default_factory=Faults)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    url: str = ""
    pace_bytes_s: float = 0.0  # 0: as fast as it goes
    hold: Lock = field(default_factory=Lock)  # held: no file's bytes are sent

    def bytes_sent(self, name: str) -> list[str]:
        """The ranges that were asked of a file."""
        return [span for method, path, span in self.asked if method == "GET" and path.endswith("/" + name)]

    def taken(self, name: str, faults: dict[str, int]) -> int | None:
        left = faults.get(name)
        return faults.pop(name) if left is not None else None


@dataclass
class Hub(Server):
    repository: str = "org/chat"
    commit: str = "c0ffee" + "0" * 34
    token: str = ""  # empty: none is asked for
    gated: bool = False
    exists: bool = True


@dataclass
class S3(Server):
    bucket: str = "models"
    prefix: str = "team/chat/"
    region: str = "us-east-1"
    credentials: sigv4.Credentials | None = field(default_factory=lambda: sigv4.Credentials("AKIDEXAMPLE", "the secret"))
    part_bytes: int = 300_000  # larger objects were uploaded in parts
    page: int = 2
    encryption: str = ""

    def environ(self, **more: str) -> dict[str, str]:
        given = {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "the secret"}
        return {name: value for name, value in {**given, **more}.items() if value}

    def etag(self, name: str) -> str:
        data = self.files[name]
        if len(data) <= self.part_bytes:
            return hashlib.md5(data).hexdigest()
        parts = [data[at : at + self.part_bytes] for at in range(0, len(data), self.part_bytes)]
        whole = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()
        return f"{whole}-{len(parts)}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world: Any

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._ask()

    def do_GET(self) -> None:
        self._ask()

    def _ask(self) -> None:
        world = self.world
        parts = urlsplit(self.path)
        world.asked.append((self.command, unquote(parts.path), self.headers.get("Range", "")))
        if world.faults.refuse > 0:
            world.faults.refuse -= 1
            asked = world.faults.retry_after_s
            self.say(503, b"slow down", **({"Retry-After": str(asked)} if asked is not None else {}))
            return
        self.answer(unquote(parts.path), dict(parse_qsl(parts.query, keep_blank_values=True)))

    def answer(self, path: str, query: dict[str, str]) -> None:
        raise NotImplementedError

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.get("length", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send(self, name: str, etag: str, **more: str) -> None:
        """A file, or the range of it that is asked for."""
        world, data = self.world, self.world.files[name]
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin = int(found[1]) if found else 0
        if begin >= len(data) and found:
            self.say(416, ETag=etag)
            return
        with world.hold:
            cut = world.taken(name, world.faults.cut)
        body = data[begin:]
        if self.command == "GET" and world.faults.spoil.get(name, 0) > 0:
            world.faults.spoil[name] -= 1
            body = bytes(len(body))
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        for key, value in {"ETag": etag, "Accept-Ranges": "bytes", "Content-Length": str(len(body)), **more}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut is not None:
            self.wfile.write(body[:cut])
            self.close_connection = True
            return
        self._write(body)

    def _write(self, body: bytes) -> None:
        pace = self.world.pace_bytes_s
        step = max(1, int(pace / 10)) if pace else len(body) or 1
        for at in range(0, len(body), step):
            self.wfile.write(body[at : at + step])
            if pace:
                time.sleep(step / pace)


class _HubHandler(_Handler):
    def answer(self, path: str, query: dict[str, str]) -> None:
        hub: Hub = self.world
        api = f"/api/models/{hub.repository}"
        if not hub.exists or hub.repository not in path:
            self.say(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            if hub.gated:
                self.say(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
            else:
                self.say(401, b"{}", X_Error_Message="Invalid credentials in Authorization header")
        elif path == api or path.startswith(f"{api}/revision/"):
            self._info(path.removeprefix(f"{api}/revision/") if "/revision/" in path else "main")
        elif path == f"{api}/tree/{hub.commit}":
            self.say(200, json.dumps([self._entry(name) for name in hub.files]).encode(), Content_Type="application/json")
        elif path.startswith(f"/{hub.repository}/resolve/{hub.commit}/"):
            name = path.removeprefix(f"/{hub.repository}/resolve/{hub.commit}/")
            self.send(name, f'"{self._etag(name)}"', **{"X-Repo-Commit": hub.commit})
        else:
            self.say(404, b"{}", X_Error_Code="EntryNotFound")

    def _info(self, revision: str) -> None:
        hub: Hub = self.world
        if revision not in ("main", "v1", hub.commit):
            self.say(404, b"{}", X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
            return
        listed = [{"rfilename": name} for name in hub.files]
        info = {"id": hub.repository, "modelId": hub.repository, "sha": hub.commit, "private": False, "siblings": listed}
        self.say(200, json.dumps(info).encode(), Content_Type="application/json")

    def _large(self, name: str) -> bool:
        return name.endswith((".safetensors", ".pth"))

    def _etag(self, name: str) -> str:
        data = self.world.files[name]
        if self._large(name):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()

    def _entry(self, name: str) -> dict[str, Any]:
        data = self.world.files[name]
        git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        lfs = {"oid": self._etag(name), "size": len(data), "pointerSize": 130}
        return {"type": "file", "oid": git, "size": len(data), "path": name, **({"lfs": lfs} if self._large(name) else {})}


class _S3Handler(_Handler):
    def answer(self, path: str, query: dict[str, str]) -> None:
        s3: S3 = self.world
        if refusal := self._unsigned(path, query):
            self._error(400 if refusal == "AuthorizationHeaderMalformed" else 403, refusal)
        elif not path.startswith(f"/{s3.bucket}"):
            self._error(404, "NoSuchBucket")
        elif path == f"/{s3.bucket}":
            self._list(query)
        else:
            self._object(path.removeprefix(f"/{s3.bucket}/{s3.prefix}"), query)

    def _unsigned(self, path: str, query: dict[str, str]) -> str:
        """What is wrong with the signature."""
        s3: S3 = self.world
        if s3.credentials is None:
            return ""
        proof = self.headers.get("Authorization", "")
        found = re.fullmatch(r"AWS4-HMAC-SHA256 Credential=([^/]+)/[^,]*, SignedHeaders=([^,]+), Signature=([0-9a-f]{64})", proof)
        if not found:
            return "AccessDenied"
        if found[1] != s3.credentials.access_key_id:
            return "InvalidAccessKeyId"
        if f"/{s3.region}/s3/" not in proof:
            return "AuthorizationHeaderMalformed"
        at = datetime.strptime(self.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        mine = {"x-amz-date", "x-amz-content-sha256", "x-amz-security-token"}
        signed = {name: self.headers[name] for name in found[2].split(";") if name not in mine}
        want = sigv4.sign(self.command, path, query, signed, s3.credentials, s3.region, at)
        return "" if want["authorization"] == proof else "SignatureDoesNotMatch"

    def _list(self, query: dict[str, str]) -> None:
        s3: S3 = self.world
        prefix, begin = query["prefix"], int(query.get("continuation-token", "0"))
        keys = sorted(s3.prefix + name for name in s3.files)
        direct = [key for key in keys if key.startswith(prefix) and "/" not in key[len(prefix) :]]
        page = direct[begin : begin + s3.page]
        listed = "".join(self._entry(key) for key in page)
        more = begin + s3.page < len(direct)
        token = f"<NextContinuationToken>{begin + s3.page}</NextContinuationToken>" if more else ""
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        text = (
            f'<ListBucketResult xmlns="{space}"><IsTruncated>{str(more).lower()}</IsTruncated>{listed}{token}</ListBucketResult>'
        )
        self.say(200, text.encode())

    def _entry(self, key: str) -> str:
        s3: S3 = self.world
        name = key.removeprefix(s3.prefix)
        etag = f"&quot;{s3.etag(name)}&quot;"
        return f"<Contents><Key>{key}</Key><Size>{len(s3.files[name])}</Size><ETag>{etag}</ETag></Contents>"

    def _object(self, name: str, query: dict[str, str]) -> None:
        s3: S3 = self.world
        if name not in s3.files:
            self._error(404, "NoSuchKey")
            return
        etag, data = f'"{s3.etag(name)}"', s3.files[name]
        if self.headers.get("if-match", etag) != etag:
            self._error(412, "PreconditionFailed")
        elif "partNumber" in query:
            parts = str(-(-len(data) // s3.part_bytes))
            self.say(206, length=str(min(len(data), s3.part_bytes)), x_amz_mp_parts_count=parts)
        else:
            self.send(name, etag, **({"x-amz-server-side-encryption": s3.encryption} if s3.encryption else {}))

    def _error(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>said by the server</Message></Error>".encode()
        self.say(status, body, x_amz_bucket_region=self.world.region)


@contextmanager
def served(world: Server, host: str = "127.0.0.1", port: int = 0) -> Iterator[None]:
    handler = _HubHandler if isinstance(world, Hub) else _S3Handler
    server = ThreadingHTTPServer((host, port), type("Handler", (handler,), {"world": world}))
    server.daemon_threads = True
    world.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main(words: list[str]) -> None:
    """HOST HUB_PORT S3_PORT BYTES PACE: serves a model of that size, until it is ended."""
    host, hub_port, s3_port, size, pace = words[0], *map(int, words[1:])
    files = {**FILES, "model-00001-of-00002.safetensors": bytes(size)}
    hub = Hub(files=files, token="hf_right", pace_bytes_s=pace)
    s3 = S3(files=files, pace_bytes_s=pace, part_bytes=5 << 20)
    with served(hub, host, hub_port), served(s3, host, s3_port):
        print("ready", flush=True)
        while True:
            time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1:])


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
