"""`penstock operator`: the process.

Promise: two replicas run, one writes. The standby has a connection and a metrics page and nothing else; it leads within
duration + retry of the leader's death, or at once if the leader left in order. Losing the Lease ends the process.
"""

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from penstock_operator.plan.settings import OperatorSettings, load_settings
from penstock_operator.shell.access import Access, NoAccess, find_access
from penstock_operator.shell.api_server import ApiServer
from penstock_operator.shell.figures import Figures
from penstock_operator.shell.health import Health, serve
from penstock_operator.shell.leader import Leader
from penstock_operator.shell.lease import Timing
from penstock_operator.shell.looker import Looker, Prometheus
from penstock_operator.shell.loops import Term
from penstock_operator.shell.ports import Planner
from penstock_operator.shell.reconciler import LeaseLost, Reconciler
from penstock_operator.shell.resync import GRACE_S, Told
from penstock_operator.shell.sight import Sight
from penstock_operator.shell.watch import WatchEnded, quiet_kopf

log = logging.getLogger(__name__)
LEASE_NAME = "penstock-operator"


@dataclass(frozen=True, slots=True)
class Options:
    """What a replica is told. No namespaces: all of them."""

    home: str  # the namespace of the Lease
    namespaces: Collection[str] = ()
    listen: str = "0.0.0.0:8080"
    workers: int = 4
    resync_s: float = 60.0
    grace_s: float = GRACE_S  # how long a watch may owe an event
    timing: Timing = field(default_factory=Timing)
    prometheus_url: str = ""  # of the settings


def uptime() -> float:
    """Goes on while the machine sleeps, as the Lease does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def run(options: Options, access: Access, planner: Planner) -> int:
    """0 after SIGTERM or SIGINT, 1 when the Lease is lost or a loop fails."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    figures, health = Figures(), Health(reached_at_s=uptime())
    timing = options.timing
    async with contextlib.AsyncExitStack() as stack:
        apis = []
        for read_timeout_s in (timing.renew_within_s, 30.0):
            # The Lease has a connection of its own: renewing it never waits behind a slow list.
            api = ApiServer(access, write_timeout_s=timing.write_timeout_s, read_timeout_s=read_timeout_s)
            stack.push_async_callback(api.close)
            apis.append(api)
        runner = await serve(options.listen, health, figures.registry, uptime)
        stack.push_async_callback(runner.cleanup)
        me = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        leader = Leader(
            apis[0], options.home, LEASE_NAME, me, timing, uptime, time.time, random.random,
            lambda at_s: setattr(health, "reached_at_s", at_s),
        )  # fmt: skip
        sight = Sight(apis[1])
        prometheus = Prometheus(options.prometheus_url)
        stack.push_async_callback(prometheus.close)
        looker = Looker(apis[1], prometheus)
        reconciler = Reconciler(apis[1], planner, leader.may_write, figures, time.time, me, sight, looker)
        term = Term(
            apis[1], access, planner, reconciler, sight, figures, health, options.namespaces, uptime, random.random,
            options.workers, options.resync_s, told=Told(options.grace_s),
        )  # fmt: skip
        return await _lead(leader, term, stop)


async def _lead(leader: Leader, term: Term, stop: asyncio.Event) -> int:
    stopped = asyncio.create_task(stop.wait())
    acquire = asyncio.create_task(leader.acquire())
    await asyncio.wait([stopped, acquire], return_when=asyncio.FIRST_COMPLETED)
    if not acquire.done():
        await _end(acquire)
        return 0
    term.health.leading = True
    term.figures.leading.set(1)
    hold, work = asyncio.create_task(leader.hold()), asyncio.create_task(term.run())
    await asyncio.wait([stopped, hold, work], return_when=asyncio.FIRST_COMPLETED)
    term.figures.leading.set(0)
    await _end(work)
    await _end(hold)
    if stopped.done():
        await leader.release()
        return 0
    await _end(stopped)
    _tell_why(work)
    return 1


async def _end(task: "asyncio.Task[object]") -> None:
    task.cancel()
    await asyncio.wait([task])


def _tell_why(work: "asyncio.Task[None]") -> None:
    error = None if work.cancelled() else work.exception()
    group = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error] if error else [LeaseLost()])
    if group.subgroup(LeaseLost):
        log.error("the Lease is lost: it was not renewed in time, or another replica took it")
    elif ended := group.subgroup(WatchEnded):
        log.error("the watch has ended: %s", ended.exceptions[0])
    else:
        log.error("ended by a failure", exc_info=error)


def main(options: Options, settings_file: Path | None, planner: Callable[[OperatorSettings], Planner]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    quiet_kopf()
    try:
        settings, access = load_settings(settings_file), find_access(os.environ)
    except (ValueError, NoAccess) as error:
        log.error("%s", error)
        return 2
    return asyncio.run(run(replace(options, prometheus_url=settings.prometheus.url), access, planner(settings)))
