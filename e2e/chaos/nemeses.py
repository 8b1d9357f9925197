"""What strikes the fleet: one small class per nemesis, how it strikes and how it heals.

Promise: a nemesis heals only what it struck: the incarnation that has gone meanwhile needs no healing.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from chaos.fleet import Fleet, Process
from chaos.links import Link
from chaos.plan import Fault, router_of, worker_of
from chaos.relay import Relay

Heal = Callable[[], None]


def nothing() -> None:
    """There is nothing to heal."""


class Nemesis(Protocol):
    def strike(self, fleet: Fleet, fault: Fault) -> Heal: ...


def process_of(fleet: Fleet, fault: Fault) -> Process:
    return fleet[fault.target]


def link_of(fleet: Fleet, fault: Fault) -> tuple[Link, Relay]:
    r, w = router_of(fault.target), worker_of(fault.target)
    assert r is not None and w is not None, fault.target
    return fleet.links[r, w], fleet.relays[r, w]


def _same(process: Process, heal: Callable[[], None]) -> Heal:
    incarnation = process.incarnation
    return lambda: heal() if process.incarnation == incarnation and process.alive else None


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal; for SIGSTOP, SIGCONT heals."""

    number: signal.Signals

    def strike(self, fleet: Fleet, fault: Fault) -> Heal:
        process = process_of(fleet, fault)
        process.signal(self.number)
        return _same(process, lambda: process.signal(signal.SIGCONT)) if self.number == signal.SIGSTOP else nothing


@dataclass(frozen=True, slots=True)
class KillLargest:
    """SIGKILL to the process with the largest resident memory: what the kernel's out-of-memory killer does."""

    def strike(self, fleet: Fleet, fault: Fault) -> Heal:
        victims = [p for p in fleet.processes if p.alive and p.name != fleet.spared]
        max(victims, key=lambda p: p.rss_mib()).signal(signal.SIGKILL)
        return nothing


@dataclass(frozen=True, slots=True)
class String:
    """A command to the process, and the one that takes it back."""

    pull: tuple[tuple[str, object], ...]
    release: tuple[tuple[str, object], ...] = ()
    dooms: bool = False  # its own watchdog may end the process

    def strike(self, fleet: Fleet, fault: Fault) -> Heal:
        process = process_of(fleet, fault)
        process.doomed = process.doomed or self.dooms
        process.command(**dict(self.pull))
        if not self.release:
            return nothing
        return _same(process, lambda: process.command(**dict(self.release)))


@dataclass(frozen=True, slots=True)
class CutLink:
    """RST on every connection between the router and the worker."""

    def strike(self, fleet: Fleet, fault: Fault) -> Heal:
        link, _ = link_of(fleet, fault)
        link.cut()
        return nothing


@dataclass(frozen=True, slots=True)
class BlackHole:
    """Nothing passes between router and worker, in either direction, and nobody is told; then all of it does, late."""

    def strike(self, fleet: Fleet, fault: Fault) -> Heal:
        link, relay = link_of(fleet, fault)
        link.start_hole()
        relay.gate.shut = True

        def heal() -> None:
            link.end_hole()
            relay.gate.open()

        return heal


@dataclass(frozen=True, slots=True)
class LagLink:
    """Every octet between router and worker comes late."""

    by_s: float = 0.15

    def strike(self, fleet: Fleet, fault: Fault) -> Heal:
        link, _ = link_of(fleet, fault)
        link.lag_s = self.by_s

        def heal() -> None:
            link.lag_s = 0.0

        return heal


@dataclass(frozen=True, slots=True)
class CutReports:
    """The worker's Join breaks."""

    def strike(self, fleet: Fleet, fault: Fault) -> Heal:
        link_of(fleet, fault)[1].cut()
        return nothing


@dataclass(frozen=True, slots=True)
class StaleReports:
    """Reports are held back and then come at once, in order."""

    def strike(self, fleet: Fleet, fault: Fault) -> Heal:
        relay = link_of(fleet, fault)[1]
        relay.gate.shut = True
        return relay.gate.open


@dataclass(frozen=True, slots=True)
class RepeatReports:
    """Every report but Hello comes twice."""

    def strike(self, fleet: Fleet, fault: Fault) -> Heal:
        relay = link_of(fleet, fault)[1]
        relay.says_twice = True

        def heal() -> None:
            relay.says_twice = False

        return heal


@dataclass(frozen=True, slots=True)
class LoseKvReports:
    """KV changes are lost on the way: the router finds a gap and asks for a snapshot."""

    def strike(self, fleet: Fleet, fault: Fault) -> Heal:
        relay = link_of(fleet, fault)[1]
        relay.loses_kv = True

        def heal() -> None:
            relay.loses_kv = False

        return heal


NEMESES: Final[dict[str, Nemesis]] = {
    "kill_worker": Signal(signal.SIGKILL),
    "pause_worker": Signal(signal.SIGSTOP),
    "freeze_worker": Signal(signal.SIGSTOP),
    "drain_worker": Signal(signal.SIGTERM),
    "slow_worker": String((("do", "slow"), ("by", 10.0)), (("do", "slow"), ("by", 1.0))),
    "hang_engine": String((("do", "hang"),), (("do", "resume"),), dooms=True),
    "kill_engine": String((("do", "die"),), dooms=True),
    "expire_leases": String((("do", "lease"), ("s", 0.001)), (("do", "lease"), ("s", None))),
    "refuse_pulls": String((("do", "refuse"), ("on", True)), (("do", "refuse"), ("on", False))),
    "slow_pulls": String((("do", "slow_pulls"), ("s", 1.5)), (("do", "slow_pulls"), ("s", 0.005))),
    "cut_link": CutLink(),
    "black_hole": BlackHole(),
    "lag_link": LagLink(),
    "cut_reports": CutReports(),
    "stale_reports": StaleReports(),
    "repeat_reports": RepeatReports(),
    "lose_kv_reports": LoseKvReports(),
    "kill_router": Signal(signal.SIGKILL),
    "stop_router": Signal(signal.SIGTERM),
    "pause_router": Signal(signal.SIGSTOP),
    "step_clock": String((("do", "clock"), ("by_s", -3600.0)), (("do", "clock"), ("by_s", 0.0))),
    "kill_largest": KillLargest(),
}
