"""The real API server, over aiohttp.

Promise: one request per call, bounded in time; an answer that is cut short is no answer. A write's time is bounded below
the Lease's margin, so that what a lost leader sent cannot arrive in the next leader's time.
"""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import aiohttp

from penstock_operator.shell.access import Access
from penstock_operator.shell.kinds import POD
from penstock_operator.shell.ports import FIELD_MANAGER, Kind, Listing, Object, Refused, Unreachable

# A page is unpacked whole: a hundred RayServices take some 10 MB.
_CHUNK = 100
_BARE_CHUNK = 500
_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_APPLY = "application/apply-patch+yaml"
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


class ApiServer:
    """`penstock_operator.shell.ports.Api` on HTTP."""

    def __init__(self, access: Access, *, write_timeout_s: float, read_timeout_s: float = 30.0, in_flight: int = 16) -> None:
        self._access = access
        self._write_timeout_s = write_timeout_s
        self._read_timeout_s = read_timeout_s
        tls = access.tls()
        connector = aiohttp.TCPConnector(limit=in_flight, ssl=tls if tls is not None else True)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True)

    async def close(self) -> None:
        await self._session.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        try:
            return await self._ask("GET", _path(kind, namespace, name))
        except Refused as error:
            if error.status == 404:
                return None
            raise

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> Listing:
        pages = [page async for page in self.pages(kind, namespace, selector)]
        return Listing([item for page in pages for item in page.items], pages[0].version)

    async def pages(self, kind: Kind, namespace: str | None, selector: str = "", *, bare: bool = False) -> AsyncIterator[Listing]:
        accept = _METADATA if bare else "application/json"
        params = {"limit": str(_BARE_CHUNK if bare else _CHUNK), **({"labelSelector": selector} if selector else {})}
        version = ""
        while True:
            page = await self._ask("GET", _path(kind, namespace), params=params, accept=accept)
            version = version or page["metadata"]["resourceVersion"]
            # The items of a list do not say what they are.
            what = {"apiVersion": kind.api_version, "kind": kind.kind}
            yield Listing(
                [{**what, **({"metadata": item["metadata"]} if bare else item)} for item in page.get("items") or ()], version
            )
            token = page["metadata"].get("continue")
            if not token:
                return
            params["continue"] = token

    async def apply(self, kind: Kind, body: Object, *, subresource: str = "") -> Object:
        meta = body["metadata"]
        path = _path(kind, meta["namespace"], meta["name"], subresource)
        params = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._ask("PATCH", path, params=params, body=body, content=_APPLY)

    async def create(self, kind: Kind, body: Object) -> Object:
        path = _path(kind, body["metadata"]["namespace"])
        return await self._ask("POST", path, params={"fieldManager": FIELD_MANAGER}, body=body)

    async def replace(self, kind: Kind, body: Object) -> Object:
        meta = body["metadata"]
        path = _path(kind, meta["namespace"], meta["name"])
        return await self._ask("PUT", path, params={"fieldManager": FIELD_MANAGER}, body=body)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str, version: str, propagation: str) -> bool:
        options = {"propagationPolicy": propagation, "preconditions": {"uid": uid, "resourceVersion": version}}
        body = {"apiVersion": "v1", "kind": "DeleteOptions", **options}
        try:
            await self._ask("DELETE", _path(kind, namespace, name), body=body)
        except Refused as error:
            if error.status == 404:
                return False
            raise
        return True

    async def log_line(self, namespace: str, pod: str, container: str) -> Object:
        """The last line of a container's log, which is a JSON object."""
        params = {"container": container, "tailLines": "1", "limitBytes": "4096"}
        return await self._ask("GET", _path(POD, namespace, pod, "log"), params=params, accept="application/json, */*")

    async def served(self, api_version: str) -> frozenset[str]:
        prefix = "/apis/" if "/" in api_version else "/api/"
        try:
            answer = await self._ask("GET", prefix + api_version)
        except Refused as error:
            if error.status == 404:
                return frozenset()
            raise
        return frozenset(one["kind"] for one in answer["resources"])

    async def storage_class(self) -> bool:
        answer = await self._ask("GET", "/apis/storage.k8s.io/v1/storageclasses")
        notes = (item["metadata"].get("annotations") or {} for item in answer.get("items") or ())
        return any(note.get(_DEFAULT_CLASS) == "true" for note in notes)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = "application/json",
        accept: str = "application/json",
    ) -> dict[str, Any]:
        headers = {"Accept": accept, "User-Agent": FIELD_MANAGER}
        token = self._access.token
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None
        if body is not None:
            headers["Content-Type"] = content
            data = json.dumps(body).encode()
        seconds = self._read_timeout_s if method == "GET" else self._write_timeout_s
        try:
            async with self._session.request(
                method, self._access.server + path, params=params, data=data, headers=headers,
                timeout=aiohttp.ClientTimeout(total=seconds), allow_redirects=False,
            ) as response:  # fmt: skip
                text = await response.read()
                status, retry_after = response.status, response.headers.get("Retry-After", "")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{method} {path}: {type(error).__name__}") from error
        return _answer(method, path, status, text, retry_after)


def _answer(method: str, path: str, status: int, text: bytes, retry_after: str) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        if status < 400:
            raise Unreachable(f"{method} {path}: an answer that is no JSON object")
        answer = {}
    if status >= 400:
        seconds = float(retry_after) if retry_after.isdigit() else None
        message = str(answer.get("message", f"{method} {path}"))
        raise Refused(status, str(answer.get("reason", "Unknown")), message, seconds)
    return answer


def _path(kind: Kind, namespace: str | None, name: str = "", subresource: str = "") -> str:
    parts = ["apis" if kind.group else "api", kind.api_version]
    if namespace is not None:
        parts += ["namespaces", quote(namespace, safe="")]
    parts.append(kind.plural)
    if name:
        parts.append(quote(name, safe=""))
    if subresource:
        parts.append(subresource)
    return "/" + "/".join(parts)
