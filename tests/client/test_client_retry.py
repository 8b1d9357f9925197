"""The pure retry rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_client.retry import CAPACITY, MAX_ATTEMPTS, REFUND, Bucket, Failure, decide


def test_a_first_failure_before_the_first_token_is_retried_after_a_jittered_wait() -> None:
    _, low = decide(Bucket(), Failure(1, False, None, False), None, 0.0)
    _, high = decide(Bucket(), Failure(1, False, None, False), None, 0.999)
    assert low.wait_s == pytest.approx(0.08) and high.wait_s == pytest.approx(0.12, abs=1e-3)


@pytest.mark.parametrize(
    ("failure", "remaining_s", "why"),
    [
        (Failure(1, True, None, False), None, "begun"),
        (Failure(1, False, None, True), None, "no retry"),
        (Failure(MAX_ATTEMPTS, False, None, False), None, "attempts"),
        (Failure(1, False, 5.0, False), 4.0, "deadline"),
    ],
)
def test_a_failure_that_must_not_be_retried_says_why(failure: Failure, remaining_s: float | None, why: str) -> None:
    _, decision = decide(Bucket(), failure, remaining_s, 0.5)
    assert decision.wait_s is None and why in decision.reason


def test_the_wait_the_service_asks_for_is_taken_as_it_is() -> None:
    _, decision = decide(Bucket(), Failure(1, False, 1.25, False), None, 0.5)
    assert decision.wait_s == 1.25


def test_a_half_empty_bucket_stops_retries_until_calls_succeed_again() -> None:
    bucket = Bucket()
    allowed = 0
    for _ in range(20):
        bucket, decision = decide(bucket, Failure(1, False, None, False), None, 0.5)
        allowed += decision.wait_s is not None
    assert allowed == CAPACITY / 2 - 1
    for _ in range(60):
        bucket = bucket.succeeded()
    assert decide(bucket, Failure(1, False, None, False), None, 0.5)[1].wait_s is None
    for _ in range(20):
        bucket = bucket.succeeded()
    assert decide(bucket, Failure(1, False, None, False), None, 0.5)[1].wait_s is not None


@given(st.lists(st.booleans(), max_size=400))
def test_retries_never_multiply_load(outcomes: list[bool]) -> None:
    bucket, retries = Bucket(), 0
    for succeeded in outcomes:
        if succeeded:
            bucket = bucket.succeeded()
            continue
        bucket, decision = decide(bucket, Failure(1, False, None, False), None, 0.5)
        retries += decision.wait_s is not None
    assert 0 <= bucket.tokens <= CAPACITY
    assert retries <= CAPACITY / 2 + REFUND * outcomes.count(True)


@given(
    st.integers(1, 9),
    st.booleans(),
    st.none() | st.floats(0, 1e4),
    st.booleans(),
    st.none() | st.floats(0, 1e3),
    st.floats(0, 1, exclude_max=True),
)
def test_a_retry_starts_only_before_the_first_token_and_the_deadline(attempt, begun, pushback, never, remaining, u):  # type: ignore[no-untyped-def]
    _, decision = decide(Bucket(), Failure(attempt, begun, pushback, never), remaining, u)
    if decision.wait_s is not None:
        assert not begun and not never and attempt < MAX_ATTEMPTS
        assert remaining is None or decision.wait_s < remaining
