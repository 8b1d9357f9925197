"""Workers that fail again and again get no work for a while, and little when they come back.

Promise: a worker is ejected after `failures` failures in a row, for `eject_s` times the number of its ejections so far, at
most `max_eject_s`; no more than `max_ejected` of the workers are ejected at once (one may always be, of two or more); after
its return a worker takes part of its sequences at once, all of them after `slow_start_s`.

After Envoy's outlier detection (consecutive failures, ejection time by count, maximum ejection percent) and its slow start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Ejection:
    """When a worker counts as failing, and for how long. Seconds."""

    failures: int = 5
    eject_s: float = 5.0
    max_eject_s: float = 120.0
    max_ejected: float = 0.5  # of all workers
    slow_start_s: float = 10.0
    first_share: float = 0.1  # of its sequences, right after its return


@dataclass(frozen=True, slots=True)
class Record:
    """One worker's history. Unknown workers have the empty one."""

    failures: int = 0  # in a row
    ejections: int = 0
    until: float = float("-inf")  # ejected before this
    good_since: float = float("-inf")  # no failure since


def failed(record: Record, ejected: int, workers: int, now: float, rule: Ejection) -> Record:
    """`ejected` of `workers` are ejected now. A worker that may not be ejected keeps its count and is next."""
    record = replace(record, failures=record.failures + 1, good_since=now)
    if record.failures < rule.failures or now < record.until or not _room(ejected, workers, rule):
        return record
    ejections = record.ejections + 1
    return Record(0, ejections, now + min(rule.max_eject_s, rule.eject_s * ejections), now)


def succeeded(record: Record, now: float, rule: Ejection) -> Record:
    """A success ends the row; ejections are forgotten after as long a time without failure as the longest one lasts."""
    forget = record.ejections and now - max(record.good_since, record.until) > rule.max_eject_s
    return replace(record, failures=0, ejections=0 if forget else record.ejections)


def ejected(records: Mapping[int, Record], now: float) -> frozenset[int]:
    return frozenset(slot for slot, record in records.items() if now < record.until)


def share(record: Record, now: float, rule: Ejection) -> float:
    """What part of its sequences a worker may have: 0 while ejected, 1 long after."""
    if now < record.until:
        return 0.0
    if not record.ejections or rule.slow_start_s <= 0:
        return 1.0
    return min(1.0, rule.first_share + (1.0 - rule.first_share) * (now - record.until) / rule.slow_start_s)


def _room(ejected: int, workers: int, rule: Ejection) -> bool:
    return workers > 1 and ejected + 1 <= max(1.0, rule.max_ejected * workers)
