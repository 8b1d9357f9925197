"""How workers move from one revision to another: sizes, step by step.

Promise, for every pool, as long as the observation is true: 1. no step takes the sizes of all revisions together above
desired + maxSurge; 2. a step never takes a ready worker away where fewer than desired - maxUnavailable would stay; 3. where new
workers become ready, the rollout ends with the target alone; 4. a target in trouble takes nothing from the others. Where the
pools of the revisions differ (colocated to disaggregated), the bounds hold for the service's workers together.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from penstock_operator.plan.observed import Progress, RevisionSeen, Trouble

Sizes = Mapping[str, Mapping[str, int]]  # revision -> pool -> workers


@dataclass(frozen=True, slots=True)
class Limits:
    surge: int
    unavailable: int
    deadline_s: float  # without progress


@dataclass(frozen=True, slots=True)
class Step:
    """`sizes` names every revision that stays; `delete` those that have no worker left."""

    sizes: Sizes
    delete: tuple[str, ...]
    progress: Progress
    done: bool
    trouble: Trouble | None = None
    waiting: str = ""  # what the rollout waits for, for people


@dataclass(slots=True)
class _Cell:
    """One pool of one revision, while a step is being worked out. `goal` is None in an old revision."""

    revision: str
    pool: str
    size: int
    ready: int
    goal: int | None

    @property
    def unready(self) -> int:
        return self.size - self.ready

    def shrink(self, by: int) -> int:
        """Workers that are not ready go first, as Serve does it; gives the number of ready ones that go."""
        self.size -= max(0, min(by, self.size))
        lost = max(0, self.ready - self.size)
        self.ready -= lost
        return lost


def rollout(
    state: Progress | None,
    target: str,
    desired: Mapping[str, int],
    seen: Mapping[str, RevisionSeen],
    limits: Limits,
    now_s: float,
) -> Step:
    """`seen` holds the revisions there are, the oldest first; `target` may be among them or not."""
    there = seen.get(target)
    live = {name: one for name, one in seen.items() if one.exists and not one.deleting}
    if there is not None and there.deleting:
        kept = {name: {pool: one.size for pool, one in revision.pools.items()} for name, revision in live.items()}
        return Step(kept, (), _progress(state, target, 0, now_s), False, waiting=f"revision {target} is still being deleted")
    old = {name: one for name, one in live.items() if name != target}
    new = live.get(target)
    cells = [_cell(target, pool, new, goal) for pool, goal in desired.items()]
    cells += [_cell(target, pool, new, 0) for pool in (new.pools if new else ()) if pool not in desired]
    cells += [_cell(name, pool, revision, None) for name, revision in old.items() for pool in revision.pools]
    ready = sum(min(cell.ready, cell.goal) for cell in cells if cell.goal is not None)
    progress = _progress(state, target, ready, now_s)
    trouble = _trouble(new, progress, ready, sum(desired.values()), limits, now_s)
    for group, goal in _groups(cells, desired):
        _move(group, goal, limits, stuck=trouble is not None and bool(old))
    delete = tuple(name for name, revision in old.items() if _empty(revision))
    return _step([cell for cell in cells if cell.revision not in delete], target, desired, delete, progress, trouble)


def _cell(name: str, pool: str, revision: RevisionSeen | None, goal: int | None) -> _Cell:
    one = revision.pools.get(pool) if revision is not None else None
    return _Cell(name, pool, one.size, min(one.ready, one.size), goal) if one else _Cell(name, pool, 0, 0, goal)


def _empty(revision: RevisionSeen) -> bool:
    return all(one.size == one.ready == one.draining == 0 for one in revision.pools.values())


def _progress(state: Progress | None, target: str, ready: int, now_s: float) -> Progress:
    if state is None or state.target != target or ready > state.ready:
        return Progress(target, ready, now_s)
    return state


def _trouble(
    new: RevisionSeen | None, progress: Progress, ready: int, wanted: int, limits: Limits, now_s: float
) -> Trouble | None:
    if new is None or ready >= wanted:
        return None
    if new.troubles:
        return new.troubles[0]
    if now_s - progress.since_s >= limits.deadline_s:
        told = f"no further worker of revision {progress.target} became ready in {limits.deadline_s:.0f} s: {ready} of {wanted}"
        return Trouble("ProgressDeadlineExceeded", told)
    return None


def _groups(cells: list[_Cell], desired: Mapping[str, int]) -> list[tuple[list[_Cell], int]]:
    """Cells that are bounded together, with the number of workers that they are to have."""
    if {cell.pool for cell in cells} == set(desired):
        return [([cell for cell in cells if cell.pool == pool], goal) for pool, goal in desired.items()]
    return [(cells, sum(desired.values()))]


def _move(cells: list[_Cell], goal: int, limits: Limits, stuck: bool) -> None:
    """One step of one group: what is too much goes, then the new grow, then the old shrink."""
    old = [cell for cell in cells if cell.goal is None]
    new = [(cell, cell.goal) for cell in cells if cell.goal is not None]
    least = goal - limits.unavailable
    if not stuck:
        _shed(old, [cell for cell, _ in new], goal + limits.surge)
        room = goal + limits.surge - sum(cell.size for cell in cells)
        for cell, wanted in new:
            grown = max(0, min(room, wanted - cell.size))
            cell.size += grown
            room -= grown
        for cell in old:
            spare = sum(one.ready for one in cells) - least
            cell.shrink(min(spare, cell.size) if cell.ready else 0)
    for cell, wanted in new:
        spare = sum(one.ready for one in cells) - least
        cell.shrink(min(cell.unready + max(0, spare), cell.size - wanted))


def _shed(old: list[_Cell], new: list[_Cell], most: int) -> None:
    """Old workers that are not ready make room: all of them once the target has proven itself, one where it could not begin.

    Before that they stay: they may come back, and the target may never.
    """
    proven = any(cell.ready for cell in new)
    blocked = sum(cell.size for cell in [*old, *new]) >= most and not any(cell.size for cell in new)
    for cell in reversed(old):
        if proven:
            cell.shrink(cell.unready)
        elif blocked and cell.unready:
            cell.shrink(1)
            return


def _step(
    cells: list[_Cell],
    target: str,
    desired: Mapping[str, int],
    delete: tuple[str, ...],
    progress: Progress,
    trouble: Trouble | None,
) -> Step:
    sizes: dict[str, dict[str, int]] = {}
    for cell in cells:
        sizes.setdefault(cell.revision, {})[cell.pool] = cell.size
    ready = {cell.pool: cell.ready for cell in cells if cell.goal is not None}
    exact = all(sizes[target].get(pool) == goal and ready[pool] >= goal for pool, goal in desired.items())
    done = exact and set(sizes) == {target} and not delete
    short = [f"{pool} {ready[pool]}/{goal}" for pool, goal in desired.items() if ready[pool] < goal]
    waiting = "" if done else f"revision {target}: {', '.join(short) + ' ready' if short else 'the old one drains'}"
    return Step(sizes, delete, progress, done, trouble, waiting)
