"""Ejection of failing workers and their slow return, under every history."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_policy.health.outliers import Ejection, Record, ejected, failed, share, succeeded

RULE = Ejection(failures=3, eject_s=10.0, max_eject_s=25.0, max_ejected=0.5, slow_start_s=10.0, first_share=0.1)


def fail(record, times, now=0.0, out=0, of=4):
    for _ in range(times):
        record = failed(record, out, of, now, RULE)
    return record


def test_failures_in_a_row_eject_and_a_success_ends_the_row():
    assert share(fail(Record(), 2), 0.0, RULE) == 1.0
    assert share(fail(Record(), 3), 0.0, RULE) == 0.0
    record = fail(succeeded(fail(Record(), 2), 0.0, RULE), 2)
    assert share(record, 0.0, RULE) == 1.0


def test_each_ejection_is_longer_up_to_the_most():
    record, now, lengths = Record(), 0.0, []
    for _ in range(4):
        record = fail(record, 3, now)
        lengths.append(record.until - now)
        now = record.until
    assert lengths == [10.0, 20.0, 25.0, 25.0]


def test_a_worker_that_returns_takes_a_growing_share():
    record = fail(Record(), 3)
    assert [round(share(record, t, RULE), 2) for t in (9.9, 10.0, 15.0, 20.0, 99.0)] == [0.0, 0.1, 0.55, 1.0, 1.0]


def test_ejections_are_forgotten_after_a_long_time_without_failure():
    record = fail(Record(), 3)
    assert succeeded(record, 20.0, RULE).ejections == 1
    assert succeeded(record, 36.0, RULE).ejections == 0


@pytest.mark.parametrize(("workers", "most"), [(1, 0), (2, 1), (3, 1), (8, 4)])
def test_ejection_never_takes_more_than_its_part_of_the_workers(workers, most):
    records = dict.fromkeys(range(workers), Record())
    for slot in records:
        for _ in range(5):
            records[slot] = failed(records[slot], len(ejected(records, 0.0)), workers, 0.0, RULE)
    assert len(ejected(records, 0.0)) == most


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["fail", "ok", "wait"]), st.floats(0, 30)), max_size=120))
@settings(max_examples=150, deadline=None)
def test_every_history_leaves_workers_to_work_and_brings_the_ejected_back(history):
    records, now = dict.fromkeys(range(5), Record()), 0.0
    for slot, kind, seconds in history:
        if kind == "wait":
            now += seconds
        elif kind == "fail":
            records[slot] = failed(records[slot], len(ejected(records, now)), 5, now, RULE)
        else:
            records[slot] = succeeded(records[slot], now, RULE)
        out = ejected(records, now)
        assert len(out) <= 2
        for slot, record in records.items():
            assert 0.0 <= share(record, now, RULE) <= 1.0 and (share(record, now, RULE) == 0.0) == (slot in out)
            assert record.until <= now + RULE.max_eject_s
    assert not ejected(records, now + RULE.max_eject_s)
