"""A proxy between an operator and the API server that does to it what a bad day would.

Promise: it counts every request (verb, resource, subresource), and harms exactly the ones that a `Fault` names; a fault's numbers
count matching requests from 1, so that a run without faults tells how many there are to harm.
"""

import asyncio
import contextlib
import functools
import json
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web

What = Literal["kill before", "kill after", "drop event", "answer", "slow", "truncate", "stale", "end stream"]


@dataclass(frozen=True, slots=True)
class Call:
    verb: str  # as RBAC has it
    group: str
    resource: str  # with its subresource
    namespace: str
    name: str

    @property
    def changes(self) -> bool:
        """A write of the operator's work; renewing the Lease is none."""
        return self.verb in ("create", "update", "patch", "delete") and self.resource != "leases"

    @property
    def looks(self) -> bool:
        return self.verb in ("get", "list") and self.resource not in ("", "leases")


@dataclass(frozen=True, slots=True)
class Fault:
    """Harms matching call number `first` and the `times - 1` after it; "drop event" counts events instead of calls.

    `on` is a sort of calls or a verb of RBAC. A stale look is answered as it was `ago` changes of the answer before now, or at
    the very first.
    """

    what: What
    first: int
    times: int = 1
    on: Literal["changes", "looks", "watch", "lease", "get", "list", "create", "patch", "delete"] = "changes"
    status: int = 500
    seconds: float = 0.0
    ago: int | None = None

    def matches(self, call: Call) -> bool:
        if self.on == "lease":
            return call.resource == "leases"
        if self.on in ("changes", "looks"):
            return call.changes if self.on == "changes" else call.looks
        return call.verb == self.on and call.resource != "leases"


@dataclass
class Proxy:
    """Answers plain HTTP on loopback; `kill` ends the operator."""

    server: str
    ca_pem: str
    token: str
    fault: Fault | None = None
    kill: Callable[[], None] = lambda: None
    calls: list[Call] = field(default_factory=list)
    events: int = 0
    harmed: int = 0
    made: set[tuple[str, str]] = field(default_factory=set)  # (group, resource) of which an apply made one
    url: str = ""
    session: aiohttp.ClientSession | None = None
    _matched: int = 0
    _old: dict[str, list[bytes]] = field(default_factory=dict)  # the answers to each look that differed from the one before

    def set(self, fault: Fault | None, kill: Callable[[], None] = lambda: None) -> None:
        """A new day: counts begin anew, what was answered before is kept for staleness."""
        self.fault, self.kill = fault, kill
        self.calls, self.events, self.harmed, self._matched = [], 0, 0, 0

    def forget(self) -> None:
        self._old.clear()

    @property
    def changes(self) -> list[Call]:
        return [call for call in list(self.calls) if call.changes]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        call = _call(request)
        self.calls.append(call)
        fault = self._due(call)
        if fault is not None and fault.what == "kill before":
            return self._end(request)
        if fault is not None and fault.what == "answer":
            return _refusal(fault.status)
        if fault is not None and fault.what == "slow":
            await asyncio.sleep(fault.seconds)
        headers = {"Authorization": f"Bearer {self.token}"}
        headers |= {name: request.headers[name] for name in ("Accept", "Content-Type") if name in request.headers}
        body = await request.read() or None
        assert self.session is not None
        async with self.session.request(request.method, self.server + request.path_qs, data=body, headers=headers) as answer:
            if call.verb == "watch":
                return await self._stream(request, answer, fault)
            content = await answer.read()
            status, kind = answer.status, answer.headers.get("Content-Type", "application/json")
        if fault is not None and fault.what == "kill after":
            return self._end(request)
        if call.verb == "patch" and status == 201:
            self.made.add((call.group, call.resource))
        if call.looks and status == 200:
            content = self._remembered(request, content, fault)
        response = web.Response(status=status, body=content, headers={"Content-Type": kind})
        if fault is not None and fault.what == "truncate":
            return await self._truncated(request, response, content)
        return response

    def _remembered(self, request: web.Request, content: bytes, fault: Fault | None) -> bytes:
        old = self._old.setdefault(request.path_qs + request.headers.get("Accept", ""), [])
        if not old or old[-1] != content:
            old.append(content)
        if fault is None or fault.what != "stale":
            return content
        return old[0] if fault.ago is None else old[max(0, len(old) - 1 - fault.ago)]

    def _due(self, call: Call) -> Fault | None:
        fault = self.fault
        if fault is None or fault.what == "drop event" or not fault.matches(call):
            return None
        self._matched += 1
        if not fault.first <= self._matched < fault.first + fault.times:
            return None
        self.harmed += 1
        return fault

    def _end(self, request: web.Request) -> web.Response:
        self.kill()
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)

    async def _truncated(self, request: web.Request, whole: web.Response, content: bytes) -> web.StreamResponse:
        response = web.StreamResponse(status=whole.status, headers=whole.headers)
        response.content_length = len(content)
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        if request.transport is not None:
            request.transport.abort()
        return response

    async def _stream(self, request: web.Request, answer: aiohttp.ClientResponse, fault: Fault | None) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
        # Who was killed reads no further.
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            await response.prepare(request)
            if fault is not None and fault.what == "end stream":
                gone = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": fault.status, "reason": "Expired"}
                await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                return response
            async for line in answer.content:
                if not self._drops(line):
                    await response.write(line)
        return response

    def _drops(self, line: bytes) -> bool:
        if b'"type":"BOOKMARK"' in line[:40]:
            return False
        self.events += 1
        fault = self.fault
        if fault is None or fault.what != "drop event" or not fault.first <= self.events < fault.first + fault.times:
            return False
        self.harmed += 1
        return True


def _call(request: web.Request) -> Call:
    parts = request.path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[1:2] + parts[3:]
    group = "" if request.path.startswith("/api/") else parts.pop(0) if parts else ""
    namespace = ""
    if len(parts) > 2 and parts[0] == "namespaces":
        namespace, parts = parts[1], parts[2:]
    resource, name = [*parts, "", ""][:2]
    subresource = f"/{parts[2]}" if len(parts) > 2 else ""
    if request.method == "GET":
        verb = "watch" if request.query.get("watch") else "get" if name else "list"
    else:
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]
    return Call(verb, group, resource + subresource, namespace, name)


def _refusal(status: int) -> web.Response:
    reasons = {
        409: "Conflict",
        410: "Expired",
        422: "Invalid",
        429: "TooManyRequests",
        500: "InternalError",
        503: "ServiceUnavailable",
    }
    said = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reasons.get(status, "Unknown")}
    headers = {"Retry-After": "1"} if status == 429 else {}
    return web.json_response({**said, "message": "a fault of the test"}, status=status, headers=headers)


def _log() -> logging.Logger:
    """aiohttp calls it an error of the server when a connection is cut under it, which is what this server is for."""

    def worth_telling(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.InvalidStateError))

    log = logging.getLogger("kube.faults")
    if not log.filters:
        log.addFilter(worth_telling)
    return log


@contextlib.contextmanager
def proxy(server: str, ca_pem: str, token: str) -> Iterator[Proxy]:
    """On an event loop and a thread of its own, so that a test that blocks does not stop it."""
    made = Proxy(server, ca_pem, token)
    ready = threading.Event()
    ends: list[Callable[[], object]] = []

    async def serve() -> None:
        over = asyncio.Event()
        ends.append(functools.partial(asyncio.get_running_loop().call_soon_threadsafe, over.set))
        tls = ssl.create_default_context(cadata=ca_pem)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=0), timeout=timeout) as session:
            app = web.Application(client_max_size=2**24)
            made.session = session
            app.router.add_route("*", "/{tail:.*}", made.handle)
            runner = web.AppRunner(app, access_log=None, logger=_log(), shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await over.wait()
            await runner.cleanup()
            streams = asyncio.all_tasks() - {asyncio.current_task()}
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        # A closed TLS connection lets go of its socket a few turns of the loop later.
        await asyncio.sleep(0.1)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    if not ready.wait(30):
        raise RuntimeError("the proxy did not come up")
    try:
        yield made
    finally:
        ends[0]()
        thread.join(10)
