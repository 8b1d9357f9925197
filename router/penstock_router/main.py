"""The router process: `penstock router --config FILE`.

Promise: it listens before it has a single worker, says so in one log line with the ports it took, and on SIGTERM stops
being ready, finishes open streams within the grace, ends the rest with UNAVAILABLE, and exits 0.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import uvloop
from aiohttp.web import AppRunner

from .config import ConfigError, RouterConfig, load
from .dispatch import RETRY_AFTER_S, Dispatcher
from .faults import Broken, Unavailable
from .feed.attach import Attachment
from .feed.fleet import Fleet, Member
from .feed.join import JoinFront
from .feed.model_files import ModelFiles
from .feed.models import Loader, Models, Text
from .log import RequestLog, configure, event
from .metrics import RouterMetrics
from .request import limits_of
from .serve.grpc_front import InferenceFront, register_health, register_reflection
from .serve.http_front import make_app
from .serve.http_server import listen
from .wire.frames import Limits as WireLimits
from .wire.server import Server

log = logging.getLogger("penstock.router")
FLEET = "penstock.v1.Fleet"
SWEEP_S = 0.25
STALL_S = 0.5


class Router:
    """All parts of one router on one loop."""

    def __init__(self, config: RouterConfig, load_text: Loader | None = None) -> None:
        self.config = config
        self.metrics = RouterMetrics()
        self.fleet = Fleet(
            stale_after_s=config.stale_after_s,
            panic_threshold=config.panic_threshold,
            forget_after_s=config.forget_after_s,
            seed=zlib.crc32(config.router_id.encode()),
        )
        self.models = Models(
            self.fleet, ModelFiles(config.cache_dir), load_text or partial(_load_text, config.text_cache_mib << 20)
        )
        self.request_log = RequestLog(enabled=logging.getLogger("penstock.request").isEnabledFor(logging.INFO))
        self.dispatcher = Dispatcher(config, self.fleet, self.models, self.metrics, request_log=self.request_log)
        self.fleet.on_gone = self._gone
        self.fleet.on_change = self._changed
        self.fleet.on_draining = self.dispatcher.moves.draining
        self.join = JoinFront(
            self.fleet,
            config.router_id,
            time.monotonic,
            model=config.model,
            gaps=self.metrics.kv_gaps.child(),
            on_joined=self._joined,
            on_seen=lambda hashes: self.dispatcher.ids.told(hashes, self.dispatcher.now()),
        )
        bounds = WireLimits(max_message=config.limits.max_message_bytes, max_streams=config.limits.max_streams_per_connection)
        self.grpc = Server(bounds)
        self.reports = Server(WireLimits(max_resets=1 << 30))
        InferenceFront(self.dispatcher, limits_of(config), config.stall_s).register(self.grpc)
        self.reports.add(FLEET, {"Join": self.join.join})
        register_health(self.reports, lambda: True)
        register_reflection(self.reports, (FLEET,))
        self.app = make_app(self.dispatcher, self.metrics, config)
        self.ports: dict[str, int] = {}
        self._http: AppRunner | None = None
        self._attachments: set[Attachment] = set()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        config = self.config
        self.ports["grpc"] = await self.grpc.listen(config.grpc_listen)
        self.ports["reports"] = await self.reports.listen(config.reports_listen)
        host, _, port = config.http_listen.rpartition(":")
        self._http, self.ports["http"] = await listen(self.app, host.strip("[]"), int(port), config.stall_s)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        event(log, "listening", router_id=config.router_id, **self.ports)

    async def stop(self, grace_s: float) -> None:
        """Not ready from now on; open streams get the grace."""
        self.dispatcher.draining = True
        event(log, "draining", open_streams=len(self.dispatcher.open_answers), grace_s=grace_s)
        self.dispatcher.fleet_changed()
        self.grpc.drain()
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_s
        while self.dispatcher.open_answers and loop.time() < end:  # noqa: ASYNC110 - they end one by one, or time does
            await asyncio.sleep(0.02)
        self._end_open()
        # An answer that has ended here may still be on its way to a slow reader.
        await self.grpc.stop(max(0.1, min(2.0, end - loop.time())))
        if self._http is not None:
            await self._http.cleanup()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait((self._sweeper,))
        await self.reports.stop()
        for member in list(self.fleet.members.values()):
            self.fleet.forget(member)
        for attachment in list(self._attachments):
            await attachment.closed()
        self.request_log.flush()
        event(log, "stopped")

    def _end_open(self) -> None:
        """The grace is over: whoever still waits for an answer hears whether any of it was sent."""
        for answer in list(self.dispatcher.open_answers):
            began = any(choice.emitted for choice in answer.choices)
            why = "the router is shutting down"
            answer.fail(Broken(why) if began else Unavailable(why, RETRY_AFTER_S))

    def _joined(self, member: Member) -> None:
        if member.slot not in self.dispatcher.links:
            broken = self.dispatcher.link_broken
            link = Attachment(member, self.fleet, self.config.router_id, self.models.prepare, broken)
            self.dispatcher.links[member.slot] = link
            self._attachments.add(link)

    def _changed(self) -> None:
        self.models.refresh()
        self.dispatcher.fleet_changed()

    def _gone(self, member: Member) -> None:
        link = self.dispatcher.links.get(member.slot)
        self.dispatcher.member_gone(member)
        if link is not None:
            asyncio.get_running_loop().create_task(self._closed(link))

    async def _closed(self, link: Attachment) -> None:
        await link.closed()
        self._attachments.discard(link)

    async def _sweep(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            late, last = now - last > SWEEP_S + STALL_S, now
            if late:
                # It was this process that stood still: reports that came meanwhile are read before anybody is judged.
                event(log, "the router itself stood still", logging.WARNING)
                continue
            try:
                self._sweep_once(now)
            except Exception:  # a defect costs one sweep; without any, the dead would be sent work for ever
                log.exception("sweep failed")

    def _sweep_once(self, now: float) -> None:
        self._leave_silent(now)
        for member in self.fleet.sweep(now):
            event(log, "worker forgotten", logging.WARNING, worker=member.name)
        self.dispatcher.moves.tick(now)

    def _leave_silent(self, now: float) -> None:
        """Where most workers fall silent at once, it is more likely the network, or this machine: they get as long again."""
        links, limit = [link for link in self.dispatcher.links.values() if link.legs], self.config.lost_after_s
        silent = [link for link in links if link.is_silent(now, limit)]
        if len(silent) > 1 and len(silent) > self.config.panic_threshold * len(links):
            event(log, "most workers are silent", logging.WARNING, silent=len(silent), of=len(links))
            limit *= 2
        for link in silent:
            if link.is_silent(now, limit):
                link.leave(f"silent for {now - link.member.heard_at:.1f} s")


def _load_text(cache_bytes: int, files: Mapping[str, bytes], member: Member) -> Text:
    from .text.model import TextModel

    hello = member.hello
    return TextModel.load(
        files,
        hello.capacity.block_size,
        hello.hash.root,
        max_model_len=hello.capacity.max_model_len,
        vocab_size=hello.capacity.vocab_size,
        cache_bytes=cache_bytes,
    )


async def run(config: RouterConfig) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    router = Router(config)
    await router.start()
    # What start-up made lives as long as the process: the collector need not walk it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)
    await stop.wait()
    await router.stop(config.grace_s)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="penstock router", description="Runs one router.")
    parser.add_argument("--config", required=True, type=Path, help="YAML or JSON file of router settings")
    args = parser.parse_args(argv)
    try:
        config = load(args.config)
        # Routers of a Deployment share a file; the name of its pod is each one's own.
        config = config.model_copy(update={"router_id": os.environ.get("PENSTOCK_ROUTER_ID", config.router_id)})
    except ConfigError as error:
        print(f"penstock router: {error}", file=sys.stderr)
        return 2
    configure(config.log_level)
    try:
        uvloop.run(run(config))
    except OSError as error:
        print(f"penstock router: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
