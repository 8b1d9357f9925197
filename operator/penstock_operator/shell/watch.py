"""Kopf as an alarm clock: it watches, and tells that something about a service has changed.

Promise: no handler patches, no finalizer, no peering, no annotation, nothing awaited; what an event holds goes to the snapshot,
which compares versions, so that an event may be late, twice or missing. Kopf runs on an event loop and a thread of
its own, because when it ends it cancels every task of the loop it runs on. When it fails, `run` raises.
"""

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import kopf

from penstock_operator.shell.access import Access
from penstock_operator.shell.kinds import LLM_SERVICE, id_of, service_of
from penstock_operator.shell.ports import SERVICE_LABEL, Id, Key, Kind
from penstock_operator.shell.snapshot import pack

# (object, its version, gone, service, what it is now)
Tell = Callable[[Id, str, bool, Key, bytes], None]
_LONGEST_PAUSE_S = 15.0


class WatchEnded(Exception):
    """Kopf gave up, as it does at an error inside of a stream. The process ends with it: a restart takes less than a second."""


class _Backoffs:
    """Kopf gives up after the last of these, so there is none: an API server may be away for an hour."""

    def __iter__(self) -> Iterator[float]:
        pause = 0.25
        while True:
            yield pause * random.uniform(0.5, 1.0)
            pause = min(pause * 2, _LONGEST_PAUSE_S)


async def run(access: Access, kinds: Collection[Kind], namespaces: Collection[str], tell: Tell) -> None:
    """Watches until cancelled; `tell` is called on the caller's loop. No namespaces: all of them."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    stop = threading.Event()

    def finish(error: BaseException | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def body() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(_operator(access, kinds, namespaces, stop, lambda *told: loop.call_soon_threadsafe(tell, *told)))
        except Exception as raised:  # noqa: BLE001  the thread's boundary: it is raised again on the caller's loop
            error = WatchEnded(f"{type(raised).__name__}: {raised}")
        loop.call_soon_threadsafe(finish, error)

    thread = threading.Thread(target=body, name="kopf", daemon=True)
    thread.start()
    try:
        await asyncio.shield(ended)
    finally:
        stop.set()
        if not ended.done():
            await asyncio.wait([ended], timeout=5.0)
    raise WatchEnded("Kopf returned")


async def _operator(
    access: Access, kinds: Collection[Kind], namespaces: Collection[str], stop: threading.Event, tell: Any
) -> None:
    registry = kopf.OperatorRegistry()
    settings = _settings(kinds)

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return _connection(access)

    for kind in kinds:
        _listen(registry, kind, tell)
    where: dict[str, Any] = {"namespaces": list(namespaces)} if namespaces else {"clusterwide": True}
    await kopf.operator(registry=registry, settings=settings, standalone=True, stop_flag=stop, **where)


def _listen(registry: kopf.OperatorRegistry, kind: Kind, tell: Any) -> None:
    @kopf.on.event(group=kind.group, version=kind.version, plural=kind.plural, id=f"told-{kind.plural}", registry=registry)
    async def told(event: Any, **_: Any) -> None:
        found = event["object"]
        meta = found["metadata"]
        key = service_of(kind, meta)
        if key is not None:
            gone = event["type"] == "DELETED"
            # Kopf's objects may leave out what kind they are.
            packed = b"" if gone else pack({**found, "apiVersion": kind.api_version, "kind": kind.kind})
            tell(id_of(kind, meta), meta["resourceVersion"], gone, key, packed)


def _settings(kinds: Collection[Kind]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.process.ultimate_exiting_timeout = None
    settings.networking.error_backoffs = _Backoffs()
    settings.networking.connect_timeout = 10.0
    settings.watching.chunk_size = 500
    # An idle object costs a task for as long as this; the queue that matters is ours.
    settings.queueing.idle_timeout = 0.1
    for kind in kinds:
        if kind != LLM_SERVICE:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = SERVICE_LABEL
    return settings


def _connection(access: Access) -> kopf.ConnectionInfo:
    certificate, key = access.client_pem or (None, None)
    return kopf.ConnectionInfo(
        server=access.server,
        ca_data=access.ca_pem,
        scheme="Bearer" if access.token else None,
        token=access.token,
        certificate_data=certificate,
        private_key_data=key,
        # Kopf asks for a login again at a 401 only; a pod's token is replaced by kubelet long before it ends.
    )


def quiet_kopf() -> None:
    """Its own log tells of each stream it opens; what matters is in ours."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # It warns that signals pass it by on a thread; they are ours.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
