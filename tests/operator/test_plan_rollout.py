"""Rollouts keep their bounds, end, and undo themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_operator.plan.observed import PoolSeen, Progress, RevisionSeen, Trouble
from penstock_operator.plan.rollout import Limits, Step, rollout

DEADLINE_S = 1800.0


def seen(name: str, trouble: Trouble | None = None, deleting: bool = False, **pools: tuple[int, int]) -> RevisionSeen:
    return RevisionSeen(
        name,
        {},
        {pool: PoolSeen(size, ready) for pool, (size, ready) in pools.items()},
        deleting=deleting,
        troubles=(trouble,) if trouble else (),
    )


def step(
    target: str,
    desired: Mapping[str, int],
    *revisions: RevisionSeen,
    surge: int = 1,
    unavailable: int = 0,
    state: Progress | None = None,
    now_s: float = 0.0,
) -> Step:
    limits = Limits(surge, unavailable, DEADLINE_S)
    return rollout(state, target, desired, {one.hash: one for one in revisions}, limits, now_s)


def test_a_first_revision_gets_its_whole_size_at_once() -> None:
    assert step("a", {"prefill": 2, "decode": 3}).sizes == {"a": {"prefill": 2, "decode": 3}}


def test_a_new_revision_grows_by_the_surge_and_the_old_waits_for_it() -> None:
    first = step("b", {"w": 3}, seen("a", w=(3, 3)))
    assert first.sizes == {"b": {"w": 1}, "a": {"w": 3}} and not first.done
    assert step("b", {"w": 3}, seen("a", w=(3, 3)), seen("b", w=(1, 0))).sizes == first.sizes
    assert step("b", {"w": 3}, seen("a", w=(3, 3)), seen("b", w=(1, 1))).sizes == {"b": {"w": 1}, "a": {"w": 2}}


def test_without_surge_the_old_makes_room_first() -> None:
    assert step("b", {"w": 2}, seen("a", w=(2, 2)), surge=0, unavailable=1).sizes == {"b": {"w": 0}, "a": {"w": 1}}
    assert step("b", {"w": 2}, seen("a", w=(1, 1)), surge=0, unavailable=1).sizes == {"b": {"w": 1}, "a": {"w": 1}}


def test_a_revision_without_a_worker_is_deleted_and_one_that_drains_is_not() -> None:
    done = seen("b", w=(1, 1))
    assert step("b", {"w": 1}, seen("a", w=(0, 0)), done).delete == ("a",)
    draining = RevisionSeen("a", {}, {"w": PoolSeen(0, 0, draining=1)})
    waiting = step("b", {"w": 1}, draining, done)
    assert waiting.delete == () and waiting.sizes == {"b": {"w": 1}, "a": {"w": 0}} and "drains" in waiting.waiting


def test_a_revision_in_trouble_takes_nothing_from_the_old_one() -> None:
    bad = Trouble("ImagePullBackOff", "pod x: no such image")
    stopped = step("b", {"w": 3}, seen("a", w=(3, 3)), seen("b", bad, w=(1, 0)), unavailable=1)
    assert stopped.trouble == bad and stopped.sizes == {"a": {"w": 3}, "b": {"w": 1}}


def test_an_old_worker_that_is_away_for_a_moment_stays_while_the_new_one_has_not_proven_itself() -> None:
    assert step("b", {"w": 2}, seen("a", w=(2, 1)), seen("b", w=(1, 0))).sizes["a"] == {"w": 2}
    assert step("b", {"w": 2}, seen("a", w=(2, 1)), seen("b", w=(1, 1))).sizes == {"b": {"w": 2}, "a": {"w": 1}}


def test_trouble_in_the_only_revision_does_not_keep_it_from_its_size() -> None:
    bad = Trouble("CrashLoopBackOff", "pod x")
    assert step("a", {"w": 3}, seen("a", bad, w=(1, 0))).sizes == {"a": {"w": 3}}


def test_a_rollout_that_stands_still_past_its_deadline_is_in_trouble_and_recovers_when_it_moves() -> None:
    old, new = seen("a", w=(1, 1)), seen("b", w=(1, 0))
    began = step("b", {"w": 1}, old, new, now_s=100.0).progress
    assert began == Progress("b", 0, 100.0)
    late = step("b", {"w": 1}, old, new, state=began, now_s=100.0 + DEADLINE_S)
    assert late.trouble is not None and late.trouble.reason == "ProgressDeadlineExceeded" and late.progress == began
    moved = step("b", {"w": 1}, old, seen("b", w=(1, 1)), state=began, now_s=5000.0)
    assert moved.trouble is None and moved.progress == Progress("b", 1, 5000.0)


def test_a_target_that_is_still_being_deleted_is_waited_for() -> None:
    held = step("a", {"w": 1}, seen("a", deleting=True, w=(0, 0)), seen("b", w=(1, 1)))
    assert held.sizes == {"b": {"w": 1}} and held.delete == () and "deleted" in held.waiting and not held.done


def test_pools_of_another_shape_are_bounded_together() -> None:
    assert step("b", {"prefill": 1, "decode": 1}, seen("a", workers=(2, 2))).sizes == {
        "b": {"prefill": 1, "decode": 0},
        "a": {"workers": 2},
    }


@pytest.mark.parametrize("size", [1, 4])
def test_a_pool_that_is_to_be_smaller_shrinks_at_once_where_all_are_ready(size: int) -> None:
    assert step("a", {"w": 1}, seen("a", w=(size, size))).sizes == {"a": {"w": 1}}


@dataclass
class World:
    """A cluster that does what it is asked, in an order of hypothesis's choice."""

    desired: dict[str, int]
    limits: Limits
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    ready: dict[tuple[str, str], int] = field(default_factory=dict)
    draining: dict[tuple[str, str], int] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    state: Progress | None = None
    now_s: float = 0.0

    def see(self) -> dict[str, RevisionSeen]:
        return {
            name: RevisionSeen(
                name,
                {},
                {p: PoolSeen(n, self.ready.get((name, p), 0), self.draining.get((name, p), 0)) for p, n in pools.items()},
                troubles=(Trouble("EngineFailed", "x"),) if name in self.bad else (),
            )
            for name, pools in self.sizes.items()
        }

    def reconcile(self, target: str) -> Step:
        before = self.total("size"), self.total("ready")
        made = rollout(self.state, target, self.desired, self.see(), self.limits, self.now_s)
        self.state = made.progress
        for name in made.delete:
            assert not any(self.sizes.pop(name).values())
        for name, pools in made.sizes.items():
            had = self.sizes.setdefault(name, {})
            for pool, size in pools.items():
                lost = max(0, self.ready.get((name, pool), 0) - size)
                if lost:
                    self.ready[name, pool] -= lost
                    self.draining[name, pool] = self.draining.get((name, pool), 0) + lost
                had[pool] = size
        self.keep_promises(before, self.total("size"), self.total("ready"))
        return made

    def total(self, what: str) -> dict[str, int]:
        """Of a pool, or of all where the shapes differ."""
        totals: dict[str, int] = {}
        same = all(set(pools) == set(self.desired) for pools in self.sizes.values())
        for name, pools in self.sizes.items():
            for pool, size in pools.items():
                key = pool if same else "all"
                totals[key] = totals.get(key, 0) + (size if what == "size" else self.ready.get((name, pool), 0))
        return totals

    def keep_promises(self, before: tuple[dict[str, int], dict[str, int]], size: dict[str, int], ready: dict[str, int]) -> None:
        for key, now in size.items():
            goal = self.desired[key] if key != "all" else sum(self.desired.values())
            was = before[0].get(key, sum(before[0].values()) if key == "all" else 0)
            assert now <= max(goal + self.limits.surge, was)
            had = before[1].get(key, sum(before[1].values()) if key == "all" else 0)
            assert ready.get(key, 0) >= min(had, goal - self.limits.unavailable)

    def start_one(self, choice: int) -> bool:
        waiting = [
            (name, pool)
            for name, pools in self.sizes.items()
            if name not in self.bad
            for pool, size in pools.items()
            if self.ready.get((name, pool), 0) < size
        ]
        if waiting:
            key = waiting[choice % len(waiting)]
            self.ready[key] = self.ready.get(key, 0) + 1
        return bool(waiting)

    def drain_all(self) -> None:
        self.draining.clear()

    def settle(self, target: str, choice: int = 0) -> Step:
        for _ in range(400):
            made = self.reconcile(target)
            if made.done:
                return made
            self.start_one(choice)
            self.drain_all()
        raise AssertionError(f"the rollout to {target} does not end: {self.sizes} {self.ready}")


SHAPES = [{"workers": 2}, {"prefill": 1, "decode": 3}, {"prefill": 2, "decode": 1}]
LIMITS = st.tuples(st.integers(0, 3), st.integers(0, 2)).filter(any).map(lambda two: Limits(*two, DEADLINE_S))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(data=st.data(), limits=LIMITS)
def test_any_walk_of_revisions_keeps_the_bounds_and_ends_at_its_last_target(data: st.DataObject, limits: Limits) -> None:
    world = World(dict(data.draw(st.sampled_from(SHAPES))), limits)
    target = "a"
    for move in data.draw(
        st.lists(st.sampled_from(["reconcile", "start", "drain", "lose", "target", "shape", "bad"]), max_size=40)
    ):
        world.now_s += 1
        if move == "reconcile":
            world.reconcile(target)
        elif move == "start":
            world.start_one(data.draw(st.integers(0, 5)))
        elif move == "drain":
            world.drain_all()
        elif move == "lose":
            alive = [key for key, number in world.ready.items() if number]
            if alive:
                world.ready[data.draw(st.sampled_from(alive))] -= 1
        elif move == "target":
            target = data.draw(st.sampled_from("abc"))
        elif move == "bad":
            world.bad = {data.draw(st.sampled_from("abc"))}
        else:
            world.desired = dict(data.draw(st.sampled_from(SHAPES)))
            target = data.draw(st.sampled_from("abc"))
    world.bad.discard(target)
    made = world.settle(target, data.draw(st.integers(0, 5)))
    assert world.sizes == {target: {**{pool: 0 for pool in world.sizes[target]}, **world.desired}}
    assert made.trouble is None
    assert rollout(world.state, target, world.desired, world.see(), limits, world.now_s).sizes == made.sizes


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(limits=LIMITS, steps=st.integers(0, 12), bad=st.booleans(), shape=st.sampled_from(SHAPES))
def test_there_and_back_again_is_where_it_began(limits: Limits, steps: int, bad: bool, shape: dict[str, int]) -> None:
    world = World(dict(shape), limits)
    world.settle("a")
    began = world.sizes["a"].copy()
    if bad:
        world.bad = {"b"}
    for _ in range(steps):
        world.reconcile("b")
        world.start_one(0)
        world.drain_all()
    world.settle("a")
    assert world.sizes == {"a": began}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(limits=LIMITS, steps=st.integers(1, 30), shape=st.sampled_from(SHAPES))
def test_a_bad_revision_leaves_what_the_bounds_guarantee(limits: Limits, steps: int, shape: dict[str, int]) -> None:
    world = World(dict(shape), limits)
    world.settle("a")
    world.bad = {"b"}
    for _ in range(steps):
        world.reconcile("b")
        world.drain_all()
    for pool, goal in shape.items():
        assert world.ready["a", pool] >= goal - limits.unavailable
