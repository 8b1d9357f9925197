"""What each worker is doing now: its last load report, and what this router has placed since.

Promise: a booking counts from the moment it is made until a report covers it or it is released, and is released
exactly once. Two rules keep it:
1. A report covers the legs sent to that worker up to its `last_leg_id`. A leg id is given when the leg is sent, so
   ids rise per worker; a booking that waits to be sent (the decode half of a pair) is never covered.
2. A covered leg that ends before the next report is taken off the report's figures.

One owner, synchronous, no I/O.
"""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class LoadObservation:
    """A worker's LoadReport."""

    running: int
    waiting: int = 0
    prefill_tokens: int = 0
    context_tokens: int = 0
    kv_usage: float = 0.0
    last_leg_id: int = 0


class WorkerLoad(NamedTuple):
    """A worker's load, booked work included."""

    queued_prefill_tokens: int = 0
    running: int = 0  # sequences that run or wait
    context_tokens: int = 0
    kv_usage: float = 0.0
    booked: int = 0  # bookings open on it
    placed: int = 0  # the last hold booked on it: ties go to the one left alone longest; below 0: none yet
    reported_tokens: int = 0  # of queued_prefill_tokens, those that the report knows
    reported_at: float = 0.0

    def queued_at(self, now: float, prefill_s: float) -> float:
        """Prompt tokens that still wait: the worker has gone on computing since its report."""
        done = (now - self.reported_at) / prefill_s if prefill_s > 0 else 0.0
        return self.queued_prefill_tokens - min(self.reported_tokens, max(0.0, done))


@dataclass(slots=True)
class _Booking:
    slot: int
    prefill_tokens: int
    context_tokens: int
    leg_id: int = 0  # 0: not sent
    covered: bool = False


class _Slot:
    """A report less what ended since, and the sums of the bookings that no report covers."""

    __slots__ = ("at", "booked", "context", "kv_usage", "load", "placed", "queued", "running", "sent", "took")

    def __init__(self) -> None:
        self.queued = self.running = self.context = 0  # of the report
        self.kv_usage = 0.0
        self.at = 0.0
        self.took = [0, 0, 0]  # queued, running, context of uncovered bookings
        self.sent: dict[int, int] = {}  # leg id -> hold of uncovered sent bookings, rising
        self.booked = self.placed = 0
        self.load: WorkerLoad | None = None  # what load() answered; None once anything has changed


class LoadLedger:
    """`seed`: differs between routers, so that those who see the same idle workers do not all choose the same one."""

    __slots__ = ("_bookings", "_last_hold", "_seed", "_slots")

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._slots: dict[int, _Slot] = {}
        self._bookings: dict[int, _Booking] = {}
        self._last_hold = 0

    def book(self, slot: int, prefill_tokens: int, context_tokens: int) -> int:
        """Reserve work on a worker; returns the hold that releases it."""
        self._last_hold += 1
        hold = self._last_hold
        booking = _Booking(slot, prefill_tokens, context_tokens)
        self._bookings[hold] = booking
        self._place(booking)
        self._slots[slot].placed = hold
        return hold

    def sent(self, hold: int, slot: int, leg_id: int) -> None:
        """The leg goes out now. `slot` may differ from the one booked: the booking moves there."""
        booking = self._bookings.get(hold)
        if booking is None:
            return
        if booking.slot != slot or booking.leg_id:
            self._unplace(booking)
            booking.slot, booking.covered = slot, False
            self._place(booking)
        booking.leg_id = leg_id
        self._slots[slot].sent[leg_id] = hold

    def started(self, hold: int) -> None:
        """The first token came: no prompt tokens of this leg wait any more."""
        booking = self._bookings.get(hold)
        if booking is None:
            return
        if not booking.covered and booking.slot != _NOWHERE:
            record = self._slots[booking.slot]
            record.took[0] -= booking.prefill_tokens
            record.load = None
        booking.prefill_tokens = 0

    def progress(self, hold: int, tokens: int) -> None:
        """The leg's context grew. Optional: reports carry the same."""
        booking = self._bookings.get(hold)
        if booking is None:
            return
        if not booking.covered and booking.slot != _NOWHERE:
            record = self._slots[booking.slot]
            record.took[2] += tokens
            record.load = None
        booking.context_tokens += tokens

    def release(self, hold: int) -> bool:
        """The work is over, however it ended. False: it was released before."""
        booking = self._bookings.pop(hold, None)
        if booking is None:
            return False
        self._unplace(booking)
        return True

    def report(self, slot: int, observation: LoadObservation, now: float) -> None:
        record = self._slot(slot)
        record.queued = observation.prefill_tokens
        record.running = observation.running + observation.waiting
        record.context = observation.context_tokens
        record.kv_usage = observation.kv_usage
        record.at = now
        record.load = None
        covered = []
        for leg_id in record.sent:
            if leg_id > observation.last_leg_id:
                break
            covered.append(leg_id)
        for leg_id in covered:
            booking = self._bookings[record.sent.pop(leg_id)]
            booking.covered = True
            self._count(record, booking, -1)

    def drop(self, slot: int) -> None:
        """The worker is gone. Its bookings count nowhere until they are sent elsewhere or released."""
        if self._slots.pop(slot, None) is not None:
            for booking in self._bookings.values():
                if booking.slot == slot:
                    booking.slot, booking.covered = _NOWHERE, False

    def load(self, slot: int) -> WorkerLoad:
        record = self._slots.get(slot)
        if record is None:
            return _IDLE
        load = record.load
        if load is None:
            queued, running, context = record.took
            load = record.load = WorkerLoad(
                record.queued + queued,
                record.running + running,
                record.context + context,
                record.kv_usage,
                record.booked,
                record.placed,
                record.queued,
                record.at,
            )
        return load

    def open_bookings(self) -> int:
        return len(self._bookings)

    def _slot(self, slot: int) -> _Slot:
        record = self._slots.get(slot)
        if record is None:
            record = self._slots[slot] = _Slot()
            if self._seed:
                record.placed = -((slot + 1) * self._seed * 2654435761 % 65521)
        return record

    def _place(self, booking: _Booking) -> None:
        record = self._slot(booking.slot)
        record.booked += 1
        self._count(record, booking, 1)

    def _unplace(self, booking: _Booking) -> None:
        if booking.slot == _NOWHERE:
            return
        record = self._slots[booking.slot]
        record.booked -= 1
        record.load = None
        if not booking.covered:
            record.sent.pop(booking.leg_id, None)
            self._count(record, booking, -1)
        else:
            record.running = max(0, record.running - 1)
            record.context = max(0, record.context - booking.context_tokens)

    @staticmethod
    def _count(record: _Slot, booking: _Booking, sign: int) -> None:
        record.load = None
        took = record.took
        took[0] += sign * booking.prefill_tokens
        took[1] += sign
        took[2] += sign * booking.context_tokens


_IDLE = WorkerLoad()
_NOWHERE = -1
