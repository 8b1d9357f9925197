"""The load ledger against a list of bookings that is added up anew each time."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_policy.pick.ledger import LoadLedger, LoadObservation


@dataclass
class Booked:
    slot: int | None
    prefill: int
    context: int
    leg_id: int = 0
    covered: bool = False


class Naive:
    def __init__(self):
        self.reports, self.bookings, self.placed = {}, {}, {}

    def end(self, booked):
        """What a covered leg leaves on its worker's last report when it goes."""
        if booked.covered and booked.slot in self.reports:
            report = self.reports[booked.slot]
            report[1] = max(0, report[1] - 1)
            report[2] = max(0, report[2] - booked.context)

    def load(self, slot):
        queued, running, context = self.reports.get(slot, (0, 0, 0))
        for booked in self.bookings.values():
            if booked.slot == slot and not booked.covered:
                queued, running, context = queued + booked.prefill, running + 1, context + booked.context
        return queued, running, context


operations = st.lists(
    st.tuples(
        st.sampled_from(["book", "book", "sent", "sent", "started", "progress", "release", "report", "report", "drop"]),
        st.integers(0, 2),
        st.integers(0, 40),
        st.integers(0, 40),
    ),
    max_size=50,
)


def book(ledger, naive, slot, a, b, leg):
    hold = ledger.book(slot, a, b)
    assert hold not in naive.bookings and hold > 0
    naive.bookings[hold] = Booked(slot, a, b)


def sent(ledger, naive, slot, hold, b, leg):
    ledger.sent(hold, slot, leg)
    if hold in naive.bookings:
        booked = naive.bookings[hold]
        if booked.slot != slot or booked.leg_id:
            naive.end(booked)
        booked.slot, booked.leg_id, booked.covered = slot, leg, False


def started(ledger, naive, slot, hold, b, leg):
    ledger.started(hold)
    if hold in naive.bookings:
        naive.bookings[hold].prefill = 0


def progress(ledger, naive, slot, hold, b, leg):
    ledger.progress(hold, b)
    if hold in naive.bookings:
        naive.bookings[hold].context += b


def release(ledger, naive, slot, hold, b, leg):
    booked = naive.bookings.pop(hold, None)
    assert ledger.release(hold) == (booked is not None)
    assert not ledger.release(hold)
    if booked is not None:
        naive.end(booked)


def report(ledger, naive, slot, a, b, leg):
    seen = leg - b % 5
    ledger.report(slot, LoadObservation(a, 1, b, a + b, 0.5, seen), 0.0)
    naive.reports[slot] = [b, a + 1, a + b]
    for booked in naive.bookings.values():
        if booked.slot == slot and 0 < booked.leg_id <= seen:
            booked.covered = True


def drop(ledger, naive, slot, a, b, leg):
    ledger.drop(slot)
    naive.reports.pop(slot, None)
    for booked in naive.bookings.values():
        if booked.slot == slot:
            booked.slot, booked.covered = None, False


@pytest.mark.slow
@given(operations)
@settings(max_examples=200, deadline=None)
def test_any_history_adds_up(history):
    ledger, naive = LoadLedger(), Naive()
    for leg, (kind, slot, a, b) in enumerate(history, 1):
        globals()[kind](ledger, naive, slot, a % 9 if kind in ("sent", "started", "progress", "release") else a, b, leg)
        for each in range(3):
            load = ledger.load(each)
            assert (load.queued_prefill_tokens, load.running, load.context_tokens) == naive.load(each)
            assert load.booked == sum(one.slot == each for one in naive.bookings.values())
    for hold in list(naive.bookings):
        release(ledger, naive, 0, hold, 0, 0)
    assert ledger.open_bookings() == 0 and all(ledger.load(slot).booked == 0 for slot in range(3))


def test_a_report_covers_what_was_sent_before_it_and_nothing_else():
    ledger = LoadLedger()
    early, waiting, late = (ledger.book(0, 100, 100) for _ in range(3))
    ledger.sent(early, 0, 1)
    ledger.sent(late, 0, 2)
    ledger.report(0, LoadObservation(running=1, prefill_tokens=60, context_tokens=100, last_leg_id=1), 0.0)
    assert ledger.load(0).queued_prefill_tokens == 260 and ledger.load(0).running == 3
    ledger.sent(waiting, 0, 3)
    ledger.report(0, LoadObservation(running=3, prefill_tokens=200, last_leg_id=3), 0.1)
    assert ledger.load(0).queued_prefill_tokens == 200 and ledger.load(0).running == 3


def test_the_reported_queue_drains_between_reports():
    ledger = LoadLedger()
    ledger.report(0, LoadObservation(running=1, prefill_tokens=100), 10.0)
    ledger.book(0, 50, 50)
    load = ledger.load(0)
    assert load.queued_at(10.0, 0.001) == 150
    assert load.queued_at(10.04, 0.001) == pytest.approx(110)
    assert load.queued_at(99.0, 0.001) == 50
    assert load.queued_at(9.0, 0.001) == load.queued_at(12.0, 0.0) == 150


def test_a_booking_of_a_dead_worker_moves_to_another_and_is_still_released_once():
    ledger = LoadLedger()
    hold = ledger.book(1, 0, 200)
    ledger.drop(1)
    assert ledger.load(1).running == 0
    ledger.sent(hold, 0, 7)
    assert ledger.load(0).running == 1 and ledger.load(0).context_tokens == 200
    assert ledger.release(hold) and not ledger.release(hold)
    assert ledger.load(0).running == 0
