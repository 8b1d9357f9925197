"""What goes wrong, where and when: a list of faults from a seed.

Promise: `plan` is pure; equal arguments give equal plans. Every nemesis strikes as often as asked; no target is struck while
it still suffers; a bounded number of workers and never the last router suffer at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

Where = Literal["worker", "router", "link", "largest"]


@dataclass(frozen=True, slots=True)
class Kind:
    """What the plan must know of a nemesis."""

    name: str
    on: Where
    least_s: float = 0.0  # how long it lasts; 0: it is over at once
    most_s: float = 0.0
    rest_s: float = 0.0  # until what it struck is whole again
    impairs: bool = True  # its target serves nobody meanwhile


KINDS = (
    Kind("kill_worker", "worker", rest_s=4.0),
    Kind("pause_worker", "worker", 0.2, 0.9, 0.5, impairs=False),
    Kind("freeze_worker", "worker", 3.5, 6.0, 2.0),
    Kind("drain_worker", "worker", rest_s=6.0),
    Kind("slow_worker", "worker", 2.0, 5.0, 1.0, impairs=False),
    Kind("hang_engine", "worker", 0.5, 8.0, 5.0),
    Kind("kill_engine", "worker", rest_s=4.0),
    Kind("expire_leases", "worker", 2.0, 5.0, impairs=False),
    Kind("refuse_pulls", "worker", 2.0, 5.0, impairs=False),
    Kind("slow_pulls", "worker", 2.0, 5.0, impairs=False),
    Kind("cut_link", "link", rest_s=1.0),
    Kind("black_hole", "link", 2.0, 6.0, 2.0),
    Kind("lag_link", "link", 1.0, 4.0, 0.5, impairs=False),
    Kind("cut_reports", "link", rest_s=1.0, impairs=False),
    Kind("stale_reports", "link", 0.5, 5.0, 0.5, impairs=False),
    Kind("repeat_reports", "link", 1.0, 4.0, impairs=False),
    Kind("lose_kv_reports", "link", 0.5, 2.0, impairs=False),
    Kind("kill_router", "router", rest_s=4.0),
    Kind("stop_router", "router", rest_s=8.0),
    Kind("pause_router", "router", 0.1, 0.6, 0.5),
    Kind("step_clock", "router", 1.0, 5.0, impairs=False),
    Kind("kill_largest", "largest", rest_s=4.0),
)
BY_NAME = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True, slots=True)
class Fault:
    """`target` is w3, r0, r0-w3 (a link) or largest."""

    at_s: float
    nemesis: str
    target: str
    length_s: float

    @property
    def end_s(self) -> float:
        return self.at_s + self.length_s


@dataclass(frozen=True, slots=True)
class Shape:
    """The fleet, and how much of it may suffer at once."""

    workers: int = 8
    routers: int = 2
    most_workers: int = 3
    spared_router: int | None = None  # is never killed, stopped or paused


@dataclass(frozen=True, slots=True)
class _Suffers:
    until_s: float
    target: str
    where: Where
    impaired: bool


def worker_of(target: str) -> int | None:
    part = target.rpartition("-")[2]
    return int(part[1:]) if part.startswith("w") else None


def router_of(target: str) -> int | None:
    return int(target.partition("-")[0][1:]) if target.startswith("r") else None


def whole_again_s(fault: Fault) -> float:
    """When its target no longer suffers; times are whole milliseconds."""
    return round(fault.end_s + BY_NAME[fault.nemesis].rest_s, 3)


def plan(seed: int, duration_s: float, counts: Mapping[str, int], shape: Shape = Shape()) -> tuple[Fault, ...]:
    """Faults in the order of their times; ValueError where they do not fit into the duration."""
    rng = Random(seed)
    names = [name for name in sorted(counts) for _ in range(counts[name])]
    rng.shuffle(names)
    times = sorted(rng.uniform(0, 0.95 * duration_s) for _ in names)
    faults: list[Fault] = []
    suffering: list[_Suffers] = []
    earliest = 0.0
    for name, drawn in zip(names, times, strict=True):
        kind = BY_NAME[name]
        now = max(round(drawn, 3), earliest)
        length = round(rng.uniform(kind.least_s, kind.most_s), 3)
        while True:
            suffering = [s for s in suffering if s.until_s > now]
            free = _free(kind, suffering, shape)
            if free:
                break
            now = min(s.until_s for s in suffering)
        target = rng.choice(free)
        fault = Fault(now, name, target, length)
        suffering.append(_Suffers(whole_again_s(fault), target, kind.on, kind.impairs))
        faults.append(fault)
        earliest = now
        if fault.end_s > duration_s:
            raise ValueError(f"duration_s: {duration_s:g} s are too short for {len(names)} faults")
    return tuple(faults)


def _free(kind: Kind, suffering: list[_Suffers], shape: Shape) -> list[str]:
    """The targets that the kind may strike now, in a fixed order."""
    impaired = [s for s in suffering if s.impaired]
    largest = [s for s in impaired if s.where == "largest"]
    workers_down = {worker_of(s.target) for s in impaired if s.where in ("worker", "link")}
    routers_down = {router_of(s.target) for s in impaired if s.where == "router"}
    # What `largest` names is known when it strikes: it counts as a worker and as a router.
    worker_room = not kind.impairs or len(workers_down) + len(largest) < shape.most_workers
    router_room = not kind.impairs or len(routers_down) + len(largest) < shape.routers - 1
    busy = {s.target for s in suffering}
    busy_workers = {worker_of(s.target) for s in suffering}
    busy_routers = {router_of(s.target) for s in suffering if s.where == "router"}
    routers = [r for r in range(shape.routers) if r != shape.spared_router or not kind.impairs]
    match kind.on:
        case "worker":
            return [f"w{w}" for w in range(shape.workers) if w not in busy_workers] if worker_room else []
        case "router":
            return [f"r{r}" for r in routers if r not in busy_routers] if router_room else []
        case "link":
            links = [(r, w) for r in range(shape.routers) for w in range(shape.workers)]
            own = {worker_of(s.target) for s in suffering if s.where == "worker"}
            return [f"r{r}-w{w}" for r, w in links if f"r{r}-w{w}" not in busy and w not in own] if worker_room else []
        case "largest":
            return ["largest"] if worker_room and router_room and not largest else []
