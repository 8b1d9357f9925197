"""Real engines die under load, replica and EngineCore in turn: every stream goes on, and is what an undisturbed run gave."""

import os
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from moving import START_S, Stream, disturbed, expected, manifest, pace, spread, wrong
from service import Service, up

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.slow]
STREAMS = 16
ROUNDS = 10 if os.environ.get("PENSTOCK_FULL") else 2


@dataclass
class Kills:
    """What came of them."""

    faults: list[tuple[object, ...]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return f"{len(self.faults)} wrong {self.faults[:6]}; seams {dict(self.kinds)}; gap of victims {spread(self.gaps)}"


def victim(service: Service, number: int) -> tuple[str, int]:
    """Its name and what of it is killed: of the busiest decode worker, in every fourth and fifth round of a prefill worker."""
    pool = "prefill" if number % 5 >= 3 else "decode"
    busiest = max((one for one in service.workers() if one.pool == pool), key=lambda one: one.legs)
    replica = service.listener(busiest.address)
    if number % 2 == 0:
        return busiest.worker_id, replica
    (core,) = service.cores_of(replica)
    return busiest.worker_id, core


def kill_once(service: Service, number: int, want: Sequence[Stream], kills: Kills) -> None:
    service.wait_for_workers(4)
    name = ""

    def kill() -> None:
        nonlocal name
        name, pid = victim(service, number)
        os.kill(pid, signal.SIGKILL)

    late = 8 if number % 5 >= 3 else 0  # a prefill worker's legs are those of streams that begin
    done = disturbed(service.grpc, [one.case for one in want], kill, late=late)
    faults = wrong(done.streams, want)
    seams = [(leg.kind, gap) for one in done.streams for leg, gap, _ in one.seams("resume", "handoff")]
    kills.faults += [(number, name, *one) for one in faults]
    kills.kinds.update(kind for kind, _ in seams)
    kills.gaps += [gap for kind, gap in seams if kind == "resume"]
    print(
        f"round {number}: killed {name}; {len(faults)} wrong; {spread([gap for _, gap in seams])}; "
        f"without a seam {pace(done.streams)}", flush=True,
    )  # fmt: skip
    service.wait_for_workers(4, without=name)


def stop_once(service: Service, want: Sequence[Stream]) -> tuple[list[tuple[object, ...]], list[float]]:
    """An EngineCore that is stopped: its worker goes on reporting, and finds that it hangs."""
    name = ""

    def stop() -> None:
        nonlocal name
        name, pid = victim(service, 1)
        os.kill(pid, signal.SIGSTOP)

    done = disturbed(service.grpc, [one.case for one in want], stop)
    service.wait_for_workers(4, without=name)
    return list(wrong(done.streams, want)), [gap for one in done.streams for _, gap, _ in one.seams("resume")]


def test_killed_and_stopped_engines_break_no_stream() -> None:
    with up(manifest(2, 2), timeout_s=START_S) as service:
        service.wait_for_workers(4)
        want, kills = expected(service.grpc, STREAMS), Kills()
        for number in range(ROUNDS):
            kill_once(service, number, want, kills)
        print(f"\n{ROUNDS} kills under {STREAMS} streams: {kills}")
        hung, waits = stop_once(service, want)
        print(f"a stopped EngineCore under {STREAMS} streams: {len(hung)} wrong {hung[:6]}; gap of victims {spread(waits)}")
        assert kills.faults == []
        assert kills.gaps, "a kill must meet running streams"
        assert hung == []
        assert waits
