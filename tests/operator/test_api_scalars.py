"""Durations and quantities."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_operator.api.scalars import canonical, duration_s, duration_text, quantity


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("60s", 60), ("30m", 1800), ("1h", 3600), ("1h30m", 5400), ("1.5s", 1.5), ("0s", 0)],
)
def test_a_duration_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "5x", "", "ms", "-1s", " 1s", "1 s", 5, None, True])
def test_a_duration_without_a_unit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration_s(text)


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_a_duration_survives_its_own_text(milliseconds: int) -> None:
    assert duration_s(duration_text(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize(
    ("text", "number"), [("8Gi", 8 * 2**30), ("500m", 0.5), ("2", 2), (2, 2), ("1.5", 1.5), ("1k", 1000), ("3M", 3e6)]
)
def test_a_quantity_is_read_with_its_unit(text: object, number: float) -> None:
    assert quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["8GB", "", "Gi", "-1", None, True, "1 Gi"])
def test_a_quantity_with_an_unknown_unit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        quantity(text)


@pytest.mark.parametrize(
    ("written", "held"),
    [
        ("0.5", "500m"), ("500m", "500m"), ("1000m", "1"), ("1500m", "1500m"), ("2", "2"), ("1000", "1k"), ("1500", "1500"),
        ("0", "0"), ("0.1", "100m"), ("1024Mi", "1Gi"), ("0.5Gi", "512Mi"), ("1.5Gi", "1536Mi"), ("1Ti", "1Ti"),
        ("0.5Ki", "512"), ("2000M", "2G"),
    ],
)  # fmt: skip
def test_a_quantity_is_written_as_the_api_server_holds_it(written: str, held: str) -> None:
    assert canonical(written) == held


@settings(deadline=None)
@given(st.decimals(0, 10**4, places=3), st.sampled_from(["", "k", "M", "G", "Ki", "Mi", "Gi"]))
def test_what_the_api_server_holds_is_as_much_and_stays_as_it_is(number: Decimal, unit: str) -> None:
    held, asked = canonical(f"{number}{unit}"), quantity(f"{number}{unit}")
    assert canonical(held) == held
    assert quantity(held) == pytest.approx(asked, rel=1e-9, abs=1.0 if unit.endswith("i") else 1e-9)
