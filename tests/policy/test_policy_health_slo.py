"""Freshness with its panic threshold; attainment of objectives."""

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_policy.health.freshness import classify
from penstock_policy.slo import Attained, Tally, Targets, attained, tpot


def test_a_silent_worker_is_stale_after_a_second():
    verdict = classify({0: 9.5, 1: 9.0, 2: 8.9}, now=10.0)
    assert verdict.fresh == {0, 1} and verdict.stale == {2} and not verdict.panic


def test_when_most_are_silent_silence_is_ignored():
    verdict = classify({0: 9.5, 1: 1.0, 2: 2.0}, now=10.0)
    assert verdict.fresh == {0, 1, 2} and verdict.panic and verdict.stale == {1, 2}
    assert not classify({0: 9.5, 1: 1.0}, now=10.0).panic
    assert not classify({}, now=10.0).panic


@given(st.dictionaries(st.integers(0, 20), st.floats(0, 10)), st.floats(0, 12), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_half_of_the_workers_may_always_be_used(heard, now, threshold):
    verdict = classify(heard, now, panic_threshold=threshold)
    assert len(verdict.fresh) >= threshold * len(heard)
    assert verdict.fresh | verdict.stale == set(heard)
    assert verdict.panic == bool(verdict.fresh & verdict.stale)
    assert all(now - heard[slot] > 1.0 for slot in verdict.stale)


def test_objectives_are_judged_where_they_were_asked_for_and_measured():
    both = Targets(0.5, 0.05)
    assert attained(0.4, 0.06, both) == Attained(True, False)
    assert attained(0.4, None, both) == Attained(True, None)
    assert attained(float("inf"), None, both) == Attained(False, None)
    assert attained(0.4, 0.06, Targets()) == Attained(None, None)


def test_tpot_is_the_mean_over_the_tokens_after_the_first():
    assert tpot(1.0, 3.0, 5) == 0.5
    assert tpot(1.0, 1.0, 1) is None


def test_a_tally_counts_what_was_judged():
    assert Tally().count(True).count(False).count(None) == Tally(2, 1)
