"""The plan of faults: reproducible, complete, and never the end of the whole fleet."""

from collections import Counter

import pytest
from chaos.nemeses import NEMESES
from chaos.plan import BY_NAME, KINDS, Fault, Shape, plan, router_of, whole_again_s, worker_of
from hypothesis import given, settings
from hypothesis import strategies as st

counts = st.dictionaries(st.sampled_from(sorted(BY_NAME)), st.integers(0, 3), max_size=len(KINDS))
seeds = st.integers(0, 2**32)
LONG_S = 3600.0


def suffering(faults: tuple[Fault, ...], at_s: float) -> list[Fault]:
    return [f for f in faults if f.at_s <= at_s < whole_again_s(f)]


@settings(deadline=None)
@given(seeds, counts)
def test_equal_seeds_give_equal_plans(seed: int, asked: dict[str, int]) -> None:
    assert plan(seed, LONG_S, asked) == plan(seed, LONG_S, dict(reversed(asked.items())))


def test_other_seeds_give_other_plans() -> None:
    asked = dict.fromkeys(BY_NAME, 2)
    assert len({plan(seed, LONG_S, asked) for seed in range(20)}) == 20


@settings(deadline=None)
@given(seeds, counts)
def test_every_nemesis_strikes_as_often_as_asked_and_in_order(seed: int, asked: dict[str, int]) -> None:
    faults = plan(seed, LONG_S, asked)
    assert Counter(f.nemesis for f in faults) == Counter({k: n for k, n in asked.items() if n})
    assert [f.at_s for f in faults] == sorted(f.at_s for f in faults)
    for fault in faults:
        kind = BY_NAME[fault.nemesis]
        assert kind.least_s <= fault.length_s <= kind.most_s
        assert fault.at_s >= 0 and fault.end_s <= LONG_S


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(2, 4), st.integers(3, 10), st.integers(1, 3))
def test_part_of_the_fleet_always_serves(seed: int, each: int, routers: int, workers: int, most: int) -> None:
    shape = Shape(workers, routers, min(most, workers - 1))
    faults = plan(seed, LONG_S / 4, dict.fromkeys(BY_NAME, each), shape)
    for moment in [f.at_s for f in faults]:
        now = [f for f in suffering(faults, moment) if BY_NAME[f.nemesis].impairs]
        largest = sum(f.target == "largest" for f in now)
        down = {worker_of(f.target) for f in now if worker_of(f.target) is not None}
        assert len(down) + largest <= shape.most_workers
        without = {router_of(f.target) for f in now if BY_NAME[f.nemesis].on == "router"}
        assert len(without) + largest < shape.routers


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 4))
def test_nothing_is_struck_while_it_suffers(seed: int, each: int) -> None:
    faults = plan(seed, LONG_S / 4, dict.fromkeys(BY_NAME, each))
    for i, fault in enumerate(faults):
        before = [f.target for f in suffering(faults[:i], fault.at_s)]
        assert fault.target not in before
        if fault.target.startswith("w"):
            assert not [t for t in before if worker_of(t) == worker_of(fault.target)]


@settings(deadline=None)
@given(seeds)
def test_a_spared_router_is_never_impaired(seed: int) -> None:
    for fault in plan(seed, LONG_S, dict.fromkeys(BY_NAME, 2), Shape(spared_router=0)):
        assert not (fault.target == "r0" and BY_NAME[fault.nemesis].impairs)


def test_too_short_a_time_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"duration_s: 5 s are too short for 60 faults"):
        plan(1, 5.0, {"kill_worker": 60})


def test_every_kind_has_a_nemesis_and_at_least_twelve_exist() -> None:
    assert set(BY_NAME) == set(NEMESES) and len(BY_NAME) >= 12
