"""The queue: one worker per key, no key lost, longer pauses after each failure."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from penstock_operator.shell.ports import Key
from penstock_operator.shell.work import FIRST_DELAY_S, LONGEST_DELAY_S, Work

A, B = Key("n", "a"), Key("n", "b")


def test_a_key_added_twice_is_worked_on_once():
    work = Work()
    work.add(A, 0)
    work.add(A, 1)
    assert work.take(2) == A
    assert work.take(2) is None


def test_a_key_added_while_it_is_worked_on_is_worked_on_again():
    work = Work()
    work.add(A, 0)
    assert work.take(0) == A
    work.add(A, 0)
    assert work.take(1) is None, "not by two workers at once"
    work.done(A, 1, None)
    assert work.take(1) == A


def test_the_key_that_waited_longest_goes_first():
    work = Work()
    work.add(B, 1)
    work.add(A, 2)
    assert (work.take(3), work.take(3)) == (B, A)


def test_a_key_is_not_due_before_its_time():
    work = Work()
    work.add(A, 5)
    assert work.take(4) is None
    assert work.next_s() == 5


def test_an_event_does_not_wait_for_the_back_off():
    work = Work()
    work.add(A, 0)
    work.take(0)
    work.failed(A, 0, 0.5)
    work.add(A, 0)
    assert work.take(0) == A


def test_a_server_that_names_a_pause_is_given_it():
    work = Work()
    work.add(A, 0)
    work.take(0)
    assert work.failed(A, 0, 0.5, at_least_s=30) == 30


@settings(deadline=None)
@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_pauses_grow_to_a_bound_and_success_forgets_them(failures, u):
    work, now, pauses = Work(), 0.0, []
    for _ in range(failures):
        work.add(A, now)
        assert work.take(now) == A
        pauses.append(work.failed(A, now, u))
        now += pauses[-1]
    assert pauses == sorted(pauses)
    assert all(FIRST_DELAY_S / 2 <= pause <= LONGEST_DELAY_S for pause in pauses)
    assert work.take(now) == A
    work.done(A, now, None)
    work.add(A, now)
    work.take(now)
    assert work.failed(A, now, u) <= FIRST_DELAY_S


class Queue(RuleBasedStateMachine):
    """Against a naive model: the set of keys that still need a look."""

    def __init__(self):
        super().__init__()
        self.work, self.now, self.owed, self.running = Work(), 0.0, set(), set()

    @rule(key=st.sampled_from([A, B, Key("m", "a")]))
    def add(self, key):
        self.work.add(key, self.now)
        self.owed.add(key)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def take(self):
        due = {key for key in self.owed - self.running if self.work.due[key] <= self.now}
        key = self.work.take(self.now)
        assert (key is None) == (not due)
        if key is not None:
            assert key in due
            self.owed.discard(key)
            self.running.add(key)

    @rule(ok=st.booleans(), u=st.floats(0, 1, exclude_max=True))
    def finish(self, ok, u):
        for key in sorted(self.running)[:1]:
            self.running.discard(key)
            if ok:
                self.work.done(key, self.now, None)
            else:
                self.work.failed(key, self.now, u)
                self.owed.add(key)

    @invariant()
    def nothing_is_lost_or_doubled(self):
        assert set(self.work.due) == self.owed
        assert self.work.running == self.running
        assert (self.work.next_s() is None) == (not self.owed - self.running)


Queue.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestQueue = pytest.mark.slow(Queue.TestCase)
