"""Waits grow, stay bounded, and end."""

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_workers.model.retry import Retry

units = st.floats(0, 1, exclude_max=True)


@settings(deadline=None)
@given(failures=st.integers(1, 40), u=units, asked=st.none() | st.floats(0, 1e6))
def test_every_wait_is_bounded_and_the_tries_too(failures: int, u: float, asked: float | None) -> None:
    retry = Retry(tries=10, first_s=1.0, longest_s=30.0)
    wait = retry.wait_s(failures, u, asked)
    assert (wait is None) == (failures >= 10)
    assert wait is None or 0.5 <= wait <= 30.0


@settings(deadline=None)
@given(u=units)
def test_waits_grow_until_the_longest(u: float) -> None:
    waits = [Retry(tries=100).wait_s(count, u) or 0.0 for count in range(1, 20)]
    assert waits == sorted(waits)


def test_what_the_source_asks_for_is_waited_for() -> None:
    assert Retry().wait_s(1, 0.0, 12.0) == 12.0
