"""Crash, hide, stale and every refusal, with the product's own plan: whatever happens on the way, the end is the undisturbed one.

`make e2e` runs a seeded sample, PENSTOCK_TRIALS=N so many (0: all of them); `python -m kube.crash` the same as a program.
"""

import os

import pytest
from kube.crash import run
from kube.operators import nursery

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
SAMPLE = 30


def test_every_fault_ends_where_no_fault_ends(staged, tmp_path, say):
    seed, count = int(os.environ.get("PENSTOCK_SEED", "1")), int(os.environ.get("PENSTOCK_TRIALS", str(SAMPLE)))
    with nursery(tmp_path) as operators:
        report = run(staged, operators, count or None, seed, 4, say)
    say(f"seed {seed}: {report.line()}")
    assert report.wrong == []
    assert len(report.harmless) < report.tried / 3, ("faults that never struck prove nothing", report.harmless)
