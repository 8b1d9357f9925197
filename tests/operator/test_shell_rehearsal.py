"""Crash, hide, stale and refusals with the product's plan on the API server in memory.

Every one ends where the undisturbed life ends, and then nothing is written.
"""

import os
import random

import pytest
from kube.rehearsal import Rehearsal, Slip

SAMPLE = 10  # a second each


@pytest.fixture(scope="module")
def undisturbed():
    one = Rehearsal(Slip())
    return one.live(), one.faulty.wrote, one.faulty.looked, one.told


def slips(writes, looks, events):
    for k in range(1, writes + 1):
        for what in ("before", "after", "lost", "409", "500"):
            yield Slip(what, k)
    for i in range(1, events + 1):
        yield Slip("drop", i)
        yield Slip("drop", i, times=8)
    for first in range(1, looks, max(1, looks // 40)):
        for times in (1, 15, 40):
            yield Slip("stale", first, times, on="look")
        for status in ("410", "429", "503"):
            yield Slip(status, first, 3, on="look")


@pytest.mark.slow
def test_every_fault_ends_where_no_fault_ends(undisturbed):
    right, *counts = undisturbed
    every = list(slips(*counts))
    seed = int(os.environ.get("PENSTOCK_SEED", "1"))
    chosen = every if os.environ.get("PENSTOCK_FULL") else random.Random(seed).sample(every, SAMPLE)
    harmless = 0
    for slip in chosen:
        one = Rehearsal(slip)
        assert one.live() == right, slip
        harmless += not one.faulty.struck
    print(f"{len(chosen)} of {len(every)} slips of a life of {counts[0]} writes, {counts[1]} looks and {counts[2]} events")
    assert harmless < len(chosen) / 3, "faults that never struck prove nothing"


def test_the_undisturbed_life_has_stages_of_its_own_and_one_revision_at_its_end(undisturbed):
    stages, writes, looks, events = undisturbed
    assert writes > 20 and looks > 40 and events > 10
    assert [sum(name.startswith("RayService/") for name in stage) for stage in stages] == [1, 1, 1]
    assert [sum(name.startswith("Pod/") for name in stage) for stage in stages] == [2, 3, 3]
    assert {name for name in stages[1] if name.startswith("RayService")} != {n for n in stages[2] if n.startswith("RayService")}
