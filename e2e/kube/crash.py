"""`python -m kube.crash --trials N --seed S`: a service's whole life under the product's operator, with one fault in each trial.

Promise: every trial ends, stage by stage, where the undisturbed life ended, without an orphan and without a write in the ten
resyncs after; what did not is told and makes the exit status 1. The seed chooses which of all faults are tried.
"""

import argparse
import contextlib
import itertools
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kube.build import Missing
from kube.control import Cluster
from kube.faults import Fault, Proxy, proxy
from kube.lives import STAGES, TIMING, Life, Outcome, Say
from kube.operators import Nursery, nursery
from kube.stage import Asker, stage

_STATUSES = (409, 422, 429, 500, 503, 410)
_TOO_SLOW_S = TIMING[0] - TIMING[1] + 1.0  # above the bound of a write
_VERBS = ("get", "list", "create", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Trial:
    sort: str
    name: str
    fault: Fault | None
    restart: bool = False
    kill_at: str = ""
    waits: bool = False  # the fault's count begins with the restart


def trials(undisturbed: Outcome) -> Iterator[Trial]:
    """Every fault there is for a life that went like this one."""
    # A disturbed life may have a few writes and events more.
    for k in range(1, len(undisturbed.changes) + 3):
        yield Trial("crash", f"killed before write {k}", Fault("kill before", k))
        yield Trial("crash", f"killed after write {k}", Fault("kill after", k))
    for at in STAGES:
        yield Trial("crash", f"killed as {at} is asked for", None, kill_at=at)
    for i in range(1, undisturbed.events + 1):
        yield Trial("hide", f"event {i} dropped", Fault("drop event", i))
    for i in range(1, undisturbed.events, 10):
        yield Trial("hide", f"events {i} to {i + 9} dropped", Fault("drop event", i, times=10))
    for ago, first, times in itertools.product((1, 3, None), (1, 20, 45), (3, 20)):
        told = f"{times} looks from {first} after a restart are {'the first ones' if ago is None else f'{ago} states old'}"
        yield Trial("stale", told, Fault("stale", first, times, on="looks", ago=ago), restart=True)
    yield from _refusals(undisturbed)


def _refusals(undisturbed: Outcome) -> Iterator[Trial]:
    calls = Counter(call.verb for call in undisturbed.calls if call.resource not in ("leases", ""))
    for verb in _VERBS:
        places = sorted({1, 1 + calls[verb] // 2, max(1, calls[verb] - 1)})
        for first, status in itertools.product(places, _STATUSES):
            yield Trial("refuse", f"{status} for {verb} {first}", Fault("answer", first, 2, on=verb, status=status))
        for first in places:
            yield Trial("refuse", f"{verb} {first} cut short", Fault("truncate", first, 2, on=verb))
            yield Trial("refuse", f"{verb} {first} slow", Fault("slow", first, 2, on=verb, seconds=1.0))
            yield Trial(
                "refuse", f"{verb} {first} slower than is waited for", Fault("slow", first, 1, on=verb, seconds=_TOO_SLOW_S)
            )
    for first, status in itertools.product((1, 3), _STATUSES):
        yield Trial("refuse", f"{status} for watch {first}", Fault("answer", first, 2, on="watch", status=status))
    for first, status in itertools.product((1, 3, 5), (410, 500)):
        yield Trial("refuse", f"watch {first} ends with {status}", Fault("end stream", first, 2, on="watch", status=status))
    for place, status in itertools.product((1, 2, 3, 5, 8, 12), (429, 500)):
        told = f"{status} for list {place} after a restart"
        yield Trial("refuse", told, Fault("answer", place, 1, on="list", status=status), restart=True, waits=True)
    for status in (409, 500):
        yield Trial("refuse", f"the Lease is refused twice with {status}", Fault("answer", 4, 2, on="lease", status=status))


@dataclass
class Report:
    of: int
    writes: int
    events: int
    tried: int = 0
    harmless: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    sorts: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        mean = sum(self.seconds) / max(1, len(self.seconds))
        sorts = ", ".join(f"{count} {sort}" for sort, count in sorted(self.sorts.items()))
        return (
            f"{self.tried} of {self.of} trials ({sorts}) of a life of {self.writes} writes and {self.events} events: "
            f"{len(self.wrong)} wrong, {len(self.harmless)} whose fault never struck; {mean:.1f} s each"
        )


def run(cluster: Cluster, operators: Nursery, chosen: int | None, seed: int, at_a_time: int, say: Say) -> Report:
    """None: all of them."""
    with proxy(cluster.server, cluster.ca_pem, cluster.token) as through, Asker(cluster) as asker:
        right = _undisturbed(asker, operators, through)
    every = list(trials(right))
    todo = random.Random(seed).sample(every, min(chosen or len(every), len(every)))
    report = Report(len(every), len(right.changes), right.events)
    lock = threading.Lock()
    began = time.monotonic()

    def one(number: int, trial: Trial) -> None:
        with proxy(cluster.server, cluster.ca_pem, cluster.token) as mine, Asker(cluster) as asker:
            life = Life(asker, operators, mine, f"trial-{number:04d}", right.states)
            outcome = life.live(trial.fault, trial.restart, trial.kill_at, trial.waits)
        with lock:
            _note(report, trial, outcome)
            if outcome.wrong or outcome.late:
                say(f"WRONG: {report.wrong[-1][:2000]}")
            if report.tried % 10 == 0:
                say(f"{time.monotonic() - began:.0f} s: {report.line()}")

    pool = ThreadPoolExecutor(at_a_time)
    try:
        for done in [pool.submit(one, number, trial) for number, trial in enumerate(todo)]:
            done.result()
    except KeyboardInterrupt:
        say("interrupted: what is under way ends, the rest does not begin")
    finally:
        # Whoever interrupts this does not wait for all that had not begun.
        pool.shutdown(wait=True, cancel_futures=True)
    return report


def _undisturbed(asker: Asker, operators: Nursery, through: Proxy) -> Outcome:
    right = Life(asker, operators, through, "undisturbed").live(None)
    assert not right.wrong and not right.late, (right.wrong, right.late)
    assert right.states["delete"] == {}, "an undisturbed life leaves something"
    assert len({json.dumps(state, sort_keys=True) for state in right.states.values()}) == len(STAGES), "no stage is like another"
    return right


def _note(report: Report, trial: Trial, outcome: Outcome) -> None:
    report.tried += 1
    report.sorts[trial.sort] += 1
    report.seconds.append(outcome.seconds)
    report.wrong += [f"{trial.name}: {one}" for one in outcome.wrong]
    if outcome.late:
        report.wrong.append(f"{trial.name}: writes after the end: {outcome.late}")
    if trial.fault is not None and not outcome.harmed:
        report.harmless.append(trial.name)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m kube.crash", description=__doc__)
    parser.add_argument("--trials", type=int, default=0, metavar="N", help="0: every fault there is")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--at-a-time", type=int, default=4, metavar="N")
    given = parser.parse_args(words)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="crash-"))
            cluster = stack.enter_context(stage(say))
            operators = stack.enter_context(nursery(Path(folder)))
            report = run(cluster, operators, given.trials or None, given.seed, given.at_a_time, say)
    except Missing as error:
        print(f"kube.crash: {error}", file=sys.stderr)
        return 2
    print(report.line())
    for name in report.harmless:
        print(f"never struck: {name}")
    for told in report.wrong:
        print(f"WRONG: {told}")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
