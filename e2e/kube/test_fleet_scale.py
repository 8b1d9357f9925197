"""Many services under one operator: no write in steady state, none by a restart, and a reconcile costs what its service costs.

`make e2e` has a few; PENSTOCK_FULL=1 the five hundred of the README's figures.
"""

import os

import pytest
from kube.fleet import run
from kube.operators import nursery

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
SERVICES = 500 if os.environ.get("PENSTOCK_FULL") else 12


def test_a_fleet_costs_nothing_while_nothing_changes(staged, tmp_path, say):
    with nursery(tmp_path) as operators:
        found = run(staged, operators, SERVICES, say)
    say(f"{found}; at 2000: {found.at(2000) if SERVICES >= 100 else 'too few to tell'}")
    assert found.sync.writes == 0, "a restart writes nothing"
    assert found.steady_writes == 0
    assert found.within_100_ms >= 0.99
