"""The Lease: never two writers, whatever dies, sleeps or loses its answers."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_operator.shell.lease import Standing, Timing, body, decide, may_write, observed, released, wrote

TIMING = Timing()


def lease(version, holder="other", **spec):
    return {"metadata": {"resourceVersion": str(version)}, "spec": {"holderIdentity": holder, **spec}}


def test_nobody_has_made_it():
    assert decide(observed(Standing(), None, 1), "me", TIMING, 1) == "create"


def test_anothers_is_waited_for_until_it_has_stood_still_for_its_duration():
    standing = observed(Standing(), lease(1, renewTime="a"), 100)
    assert decide(standing, "me", TIMING, 114.9) == "wait"
    standing = observed(standing, lease(2, renewTime="b"), 114)
    assert decide(standing, "me", TIMING, 128.9) == "wait"
    assert decide(standing, "me", TIMING, 129.1) == "take"


def test_a_released_one_is_taken_at_once():
    assert decide(observed(Standing(), lease(1, holder=""), 100), "me", TIMING, 100) == "take"


def test_a_write_that_held_counts_from_its_beginning():
    standing = wrote(Standing(), lease(2, "me"), began_s=100, now_s=104)
    assert may_write(standing, TIMING, 109.9)
    assert not may_write(standing, TIMING, 110.1)


def test_a_process_that_slept_may_not_write_when_it_wakes():
    assert not may_write(wrote(Standing(), lease(2, "me"), 100, 100), TIMING, 160)


def test_taking_counts_a_transition_and_renewing_keeps_the_time_of_acquiring():
    standing = observed(Standing(), lease(7, leaseTransitions=3, acquireTime="then"), 1)
    taken = body(standing, "n", "l", "me", TIMING, 0.0)
    assert taken["spec"]["leaseTransitions"] == 4
    assert taken["metadata"]["resourceVersion"] == "7"
    mine = replace(standing, seen={**taken, "metadata": {"resourceVersion": "8"}})
    renewed = body(mine, "n", "l", "me", TIMING, 60.0)
    assert renewed["spec"]["leaseTransitions"] == 4
    assert renewed["spec"]["acquireTime"] == "1970-01-01T00:00:00.000000Z"
    assert renewed["spec"]["renewTime"] == "1970-01-01T00:01:00.000000Z"


def test_only_a_holder_releases():
    assert released(observed(Standing(), lease(1), 1), "n", "l") is None
    given_up = released(wrote(Standing(), lease(2, "me"), 1, 1), "n", "l")
    assert given_up["spec"]["holderIdentity"] == ""
    assert given_up["metadata"]["resourceVersion"] == "2"


steps = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.floats(0.1, 20),  # time until this step
        st.floats(0, 5),  # how long its write is on its way
        st.sampled_from(["ok", "answer lost", "write lost"]),
    ),
    max_size=80,
)


@pytest.mark.slow
@settings(max_examples=300)
@given(steps)
def test_never_two_may_write(history):
    """Three processes, one server; writes take time, answers get lost, processes stall between steps."""
    server, version, now = None, 0, 1.0
    standings = {name: Standing() for name in "abc"}
    for name, pause, delay, fate in history:
        now += pause
        standings[name] = standing = observed(standings[name], server, now)
        verdict = decide(standing, name, TIMING, now)
        if verdict == "wait":
            standings[name] = replace(standing, renewed_at_s=None)
        elif fate != "write lost":
            version += 1
            server = {**body(standing, "n", "l", name, TIMING, now), "metadata": {"resourceVersion": str(version)}}
            began, now = now, now + delay
            if fate == "ok":
                standings[name] = wrote(standing, server, began, now)
        assert sum(may_write(one, TIMING, now) for one in standings.values()) <= 1
