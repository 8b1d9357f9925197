"""Random walks of declared states, on a real API server.

`make e2e` walks a few steps; PENSTOCK_FULL=1 two hundred.
"""

import contextlib
import itertools
import os

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from kube.stage import Asker
from kube.walks import NOT_TAKEN, REFUSED, Walker, differences, specs

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
FULL = bool(os.environ.get("PENSTOCK_FULL"))
WALKS, LENGTH = (25, 8) if FULL else (2, 3)
_numbers = itertools.count()
_steps = []


def walked(examples):
    """Few and dear: no shrinking, which would take a walk for each try."""
    return lambda test: seed(int(os.environ.get("PENSTOCK_SEED", "1")))(
        settings(
            max_examples=examples, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(test)
    )  # fmt: skip


@contextlib.contextmanager
def walker(staged):
    with Asker(staged) as asker:
        made = Walker(asker, f"walk-{next(_numbers)}")
        made.begin()
        yield made


@walked(WALKS)
@given(walk=st.lists(specs(), min_size=LENGTH, max_size=LENGTH), refused=st.sampled_from(sorted(REFUSED)))
def test_every_step_of_a_walk_ends_where_a_plan_from_nothing_would(staged, say, walk, refused):
    with walker(staged) as one:
        for spec in walk:
            assert one.declare(spec) in (200, 201)
            one.settle()
            assert one.differences() == []
        held, last = one.versions(), walk[-1]
        for name, wrong in NOT_TAKEN.items():
            assert one.declare({**last, **wrong}) == 422, name
        assert one.declare({**last, **REFUSED[refused], "router": {"replicas": 7}}) == 200
        one.settle(complete=False)
        assert one.versions() == held, "a spec that is not carried out touches nothing"
        assert one.declare(last) == 200
        one.settle()
        assert one.differences() == []
        _steps.append(one.steps)
    say(f"walk {len(_steps)} of {one.steps} steps, {sum(_steps)} in all")


def told_apart(old, new):
    return [told for name in sorted({*old, *new}) for told in differences(old.get(name), new.get(name), name)]


@walked(6 if FULL else 1)
@given(first=specs(), second=specs())
def test_there_and_back_again_is_where_it_began(staged, first, second):
    with walker(staged) as one:
        states = []
        for spec in (first, second, first):
            assert one.declare(spec) in (200, 201)
            one.settle()
            states.append(one.at_rest())
        assert told_apart(states[0], states[2]) == []
        assert one.settle() == 0, "nothing is written once it is there"
