"""One run of chaos: load, faults and samples side by side, then quiet, then the account.

Promise: the account has a verdict for every stream, a count for every nemesis, and what was left over when all was quiet.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from chaos.client import Checker, Tally
from chaos.figures import Counters, percentiles, slope
from chaos.fleet import TINY, Fleet, ready_workers, scrape
from chaos.nemeses import NEMESES, Heal
from chaos.oracle import Mix, Oracle
from chaos.plan import BY_NAME, Fault
from chaos.verdict import DEFECTS, REFUSED, RIGHT, ROUTER_BROKEN

from penstock_client import Client, PenstockError

POOLS = ("prefill",) * 3 + ("decode",) * 5
LONG_LIFE_S, GROWTH_MIB = 1200.0, 4.0  # a router that lives so long may seem to grow by so much: allocators and caches
BEARABLE_S, LEAST_READY = 60.0, 4  # how long a fault waits for so many workers to be ready at the routers it leaves
QUIET_S = 12.0  # leases (6 s) end, killed processes are back


@dataclass(frozen=True, slots=True)
class Settings:
    seed: int
    streams: int  # at least so many requests
    faults: tuple[Fault, ...]
    concurrency: int = 40
    spared_router: int | None = None
    mix: Mix = field(default_factory=Mix)
    seconds: float = 0.0  # load lasts at least so long


@dataclass
class Samples:
    """What was looked at once a second."""

    counters: Counters = field(default_factory=Counters)
    rss: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=dict)
    lag_s: list[float] = field(default_factory=list)  # of the runner's own loop: what it cannot have measured better


async def load(settings: Settings, checker: Checker, oracle: Oracle, faults_done: asyncio.Event, began: float) -> int:
    """Closed loop: so many streams at any time, until there were enough and every fault has struck. The number of requests."""
    rng = Random(settings.seed ^ 0x5EED)
    issued = 0

    def goes_on() -> bool:
        return issued < settings.streams or not faults_done.is_set() or time.monotonic() - began < settings.seconds

    async def one() -> None:
        nonlocal issued
        while goes_on():
            issued += 1
            ask = oracle.ask(rng, issued)
            await checker.stream(ask, issued)

    async with asyncio.TaskGroup() as group:
        for _ in range(settings.concurrency):
            group.create_task(one())
    return issued


async def strike(fleet: Fleet, faults: Sequence[Fault], began: float, log: list[dict[str, Any]]) -> None:
    """Every fault in its order and not before its time; heals at its end, or now where the run is over."""
    async with asyncio.TaskGroup() as group:
        for fault in faults:
            await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
            await until_bearable(fleet, fault)
            log.append({**asdict(fault), "struck_s": round(time.monotonic() - began, 3)})
            heal = NEMESES[fault.nemesis].strike(fleet, fault)
            group.create_task(_heal_later(fault.length_s, heal))


async def until_bearable(fleet: Fleet, fault: Fault) -> None:
    """The plan's promise, that part of the fleet serves, on a machine where a restart takes longer than the plan thinks."""
    kind, end = BY_NAME[fault.nemesis], time.monotonic() + BEARABLE_S
    while time.monotonic() < end:
        seen = {r.name: await asyncio.to_thread(ready_workers, r) if r.alive else 0 for r in fleet.routers}
        others = [n for name, n in seen.items() if name != fault.target]
        there = "-" in fault.target or fault.target == "largest" or fleet[fault.target].alive
        enough = min(others) >= LEAST_READY if kind.on in ("router", "largest") else max(others) > LEAST_READY
        if there and (enough or not kind.impairs):
            return
        await asyncio.sleep(0.2)


async def _heal_later(length_s: float, heal: Heal) -> None:
    try:
        await asyncio.sleep(length_s)
    finally:
        heal()


async def sample(fleet: Fleet, samples: Samples, began: float) -> None:
    while True:
        due = time.monotonic() + 1.0
        for router in fleet.routers:
            if router.alive:
                incarnation = router.incarnation
                samples.counters.saw(router.name, incarnation, await asyncio.to_thread(scrape, router.http))
                rss = router.rss_mib()
                if rss and router.incarnation == incarnation:
                    samples.rss.setdefault((router.name, incarnation), []).append((time.monotonic() - began, rss))
        await asyncio.sleep(max(0.05, due - time.monotonic()))
        samples.lag_s.append(max(0.0, time.monotonic() - due))


async def left_over(fleet: Fleet) -> list[str]:
    """What still runs or is pinned though nobody asks for anything; empty is right."""
    end = time.monotonic() + QUIET_S
    while True:
        found = [x for r in fleet.routers for x in await asyncio.to_thread(_busy, r.grpc, r.name, len(fleet.workers))]
        if not found or time.monotonic() > end:
            return found
        await asyncio.sleep(0.5)


def _busy(address: str, name: str, workers: int) -> list[str]:
    try:
        with Client(address) as client:
            status = client.status(timeout_s=2.0)
    except PenstockError as error:
        return [f"{name}: {error.code}"]
    found = [f"{name}: {status.open_streams} open streams"] if status.open_streams else []
    ready = [w for w in status.workers if w.state == "ready"]
    if len(ready) != workers:
        states = {w.worker_id: w.state for w in status.workers}
        found.append(f"{name}: {len(ready)} of {workers} workers are ready: {states}")
    for w in ready:
        if w.legs or w.running or w.waiting or w.kv_usage:
            found.append(f"{name}: {w.worker_id} has {w.legs} legs, {w.running}+{w.waiting} sequences, KV {w.kv_usage:.4f}")
    return found


async def run(settings: Settings, folder: Path) -> dict[str, Any]:
    oracle = Oracle(TINY, settings.mix)
    samples, struck = Samples(), list[dict[str, Any]]()
    async with Fleet(folder, POOLS) as fleet:
        fleet.spared = "" if settings.spared_router is None else f"r{settings.spared_router}"
        began = time.monotonic()
        tally, faults_done = Tally(), asyncio.Event()

        async def all_faults() -> None:
            try:
                await strike(fleet, settings.faults, began, struck)
            finally:
                faults_done.set()

        sampler = asyncio.create_task(sample(fleet, samples, began))
        async with Checker(fleet, tally, began=began) as checker:
            nemesis = asyncio.create_task(all_faults())
            requests = await load(settings, checker, oracle, faults_done, began)
            await nemesis
            seconds = time.monotonic() - began
            await asyncio.sleep(1.1)  # the last scrape
            remains = await left_over(fleet)
        sampler.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampler
        crashes, bad = list(fleet.crashes), fleet.bad_log_lines()
    return account(settings, tally, samples, struck, requests, seconds, remains, crashes, bad)


def account(
    settings: Settings, tally: Tally, samples: Samples, struck: list[dict[str, Any]], requests: int, seconds: float,
    remains: list[str], crashes: list[str], bad: list[str],
) -> dict[str, Any]:  # fmt: skip
    """The one document."""
    counters = samples.counters
    legs = counters.total("penstock_router_legs_total")
    kinds = Counter[str]()
    for labels, count in legs.items():
        kinds[labels.partition(",")[0]] += round(count)
    outcomes = {name: tally.outcomes[name] for name in (RIGHT, REFUSED, ROUTER_BROKEN, *DEFECTS)}
    # A decode leg and a hand-off are parts of one attempt; what starts anew is an attempt.
    attempts = kinds["whole"] + kinds["prefill"] + kinds["resume"]
    lives = {f"{name}#{number}": points for (name, number), points in samples.rss.items()}
    longest = max(lives, key=lambda life: len(lives[life]), default="")
    settled = lives[longest][len(lives[longest]) // 3 :] if longest else []
    return {
        "seed": settings.seed, "seconds": round(seconds, 1), "requests": requests, "calls": tally.attempts,
        "concurrency": settings.concurrency, "outcomes": outcomes, "right_by_front": dict(tally.fronts),
        "nemeses": dict(sorted(Counter(s["nemesis"] for s in struck).items())), "faults": len(struck),
        "defects": tally.defects, "left_over": remains, "crashes": crashes, "bad_log_lines": bad[:50],
        "failovers": counters.total("penstock_router_failovers_total"),
        "handoffs": counters.total("penstock_router_handoffs_total"),
        "dropped": counters.total("penstock_router_dropped_total"),
        "legs": {k: round(v) for k, v in legs.items()}, "client_legs": dict(sorted(tally.legs.items())),
        "upstream_attempts_per_call": round(attempts / tally.attempts, 3) if tally.attempts else 0.0,
        "refusals": dict(tally.refusals.most_common(10)),
        "tokens": tally.tokens, "tokens_per_s": round(tally.tokens / seconds, 1),
        "ttft_s": percentiles(tally.ttft_s), "longest_gap_s": percentiles(tally.gaps_s),
        "longest_gap_of_moved_streams_s": percentiles(tally.moved_gaps_s), "moved_streams": len(tally.moved_gaps_s),
        "rss": {
            "longest_life": longest, "seconds": round(settled[-1][0] - settled[0][0], 1) if settled else 0.0,
            "mib_first": round(settled[0][1], 2) if settled else 0.0, "mib_last": round(settled[-1][1], 2) if settled else 0.0,
            "slope_kib_per_minute": round(slope(settled) * 60 * 1024, 2),
        },
        "runner_lag_s": percentiles(samples.lag_s), "runner_starved_s": round(tally.starved_s, 1),
    }  # fmt: skip


def faulty(document: dict[str, Any]) -> list[str]:
    """Why a run fails; empty: it passes."""
    found = [f"{document['outcomes'][name]} streams {name}" for name in DEFECTS if document["outcomes"][name]]
    found += [f"left over: {x}" for x in document["left_over"]]
    found += [f"crash: {x}" for x in document["crashes"]]
    found += [f"log: {x}" for x in document["bad_log_lines"]]
    rss = document["rss"]
    grown = rss["slope_kib_per_minute"] / 1024 * rss["seconds"] / 60
    if rss["seconds"] >= LONG_LIFE_S and grown > GROWTH_MIB:
        found.append(f"memory: {rss['longest_life']} grows by {rss['slope_kib_per_minute']} KiB a minute")
    return found
