"""Running legs that leave their worker: because it drains, or because another has room that it lacks.

Promise: a leg is told to hand off only when the worker it goes to is booked; each leg moves to one place at a time; a
leg that nobody can take stays, and is tried again on every tick while its worker drains. Few legs of a worker move at a
time: its engine goes on with the others, so that a stream pauses for one pull and not for all those before it. A leg
that waits for KV longer than pull_timeout_s computes it.
"""

import logging
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from penstock_policy.legs import machine as legs
from penstock_policy.pick.decision import PickRequest, Placement
from penstock_policy.pick.pick import place
from penstock_policy.pick.rebalance import Running, propose

from .feed.fleet import Member
from .log import event

if TYPE_CHECKING:
    from .choice import Choice
    from .dispatch import Dispatcher

log = logging.getLogger("penstock.moves")
HAND_OFF: Final = "hand_off"  # the capability
AT_ONCE: Final = 2  # legs of a draining worker that move at a time: one is pulled while the next one ends
PART: Final = 64  # or so small a part of them, where they are many
SETTLE_S: Final = 2.0  # a leg that was moved to find room stays at least so long


class Moves:
    def __init__(self, core: "Dispatcher") -> None:
        self._core = core
        self.pulls: dict[int, tuple[Choice, float]] = {}  # by leg id: those that pull KV and have said nothing, oldest first
        self._leaving: dict[int, deque[Choice]] = {}  # by slot: what a draining worker has left to hand over
        self._under_way: dict[Choice, int] = {}  # the slot that it leaves
        self._moved_at: dict[int, float] = {}  # by slot: when a leg last left it for room

    def draining(self, member: Member) -> None:
        """When it says so, and again on each tick for those that found no place."""
        slot, first = member.slot, member.slot not in self._leaving
        found = list(self._choices(slot))
        for choice in found:
            choice.step(legs.WorkerDraining(slot))
        self._leaving[slot] = deque(choice for choice in found if self._could_leave(choice, member))
        if first:
            event(log, "legs leave a draining worker", worker=member.name, legs=len(found), reason=member.draining)
        self._go(member)

    def arrived(self, choice: "Choice") -> None:
        """A leg has said its first: where it came from, the next one may go."""
        slot = self._under_way.pop(choice, None)
        member = self._core.fleet.members.get(slot) if slot is not None else None
        if member is not None and self._leaving.get(member.slot):
            self._go(member)

    def _go(self, member: Member) -> None:
        queue = self._leaving[member.slot]
        self._under_way = {c: slot for c, slot in self._under_way.items() if _moves(c)}
        room = max(AT_ONCE, len(queue) // PART) - sum(slot == member.slot for slot in self._under_way.values())
        while queue and room > 0:
            choice = queue.popleft()
            if self._could_leave(choice, member) and self._move(choice, "drain", only=None):
                self._under_way[choice] = member.slot
                room -= 1

    def tick(self, now: float) -> None:
        for member in list(self._core.fleet.members.values()):
            if member.draining and member.legs:
                self.draining(member)
        if self._leaving:
            self._leaving = {slot: queue for slot, queue in self._leaving.items() if slot in self._core.fleet.members}
        self._stop_stalled_pulls(now)
        self._rebalance(now)

    def _stop_stalled_pulls(self, now: float) -> None:
        core = self._core
        while self.pulls:
            leg_id, (choice, began_at) = next(iter(self.pulls.items()))
            if now - began_at <= core.config.pull_timeout_s:
                return
            del self.pulls[leg_id]
            if choice.chain.accepts(leg_id):
                event(
                    log, "a pull takes too long: computing instead", logging.WARNING, request_id=choice.answer.request_id,
                    leg_id=leg_id, worker=choice.leg.worker if choice.leg is not None else "",
                )  # fmt: skip
                core.metrics.failovers.child("pull_stalled").value += 1
                choice.step(legs.LegStalled(leg_id))

    def _choices(self, slot: int) -> "Iterator[Choice]":
        for answer in self._core.open_answers:
            for choice in answer.choices:
                placed, leg = choice.chain.placement, choice.chain.leg
                if (leg is not None and leg.slot == slot) or (placed is not None and placed.slot == slot):
                    yield choice

    def _could_leave(self, choice: "Choice", member: Member) -> bool:
        return _movable(choice, member.slot) and HAND_OFF in member.hello.capabilities

    def _move(self, choice: "Choice", why: str, only: int | None) -> bool:
        """Book a place and tell the leg. `only`: the slot that it must be."""
        core, chain = self._core, choice.chain
        leg = chain.leg
        assert leg is not None
        candidates = core.fleet.candidates(choice.model.digest, core.now())
        own = next((c for c in candidates if c.slot == leg.slot), None)
        context = choice.prompt_len + choice.emitted
        # What is pulled need not be computed: to workers that can pull, it is as good as cached.
        pulled = {c.slot: context // c.block_size for c in candidates if own is not None and c.kv_compat == own.kv_compat}
        exclude = frozenset({leg.slot}) if only is None else frozenset(c.slot for c in candidates if c.slot != only)
        figures = core.figures.classes[choice.answer.service_class].service_class
        request = PickRequest(
            prompt_tokens=context,
            max_tokens=chain.max_tokens - choice.emitted,
            matched=pulled,
            ttft_slo_s=figures.ttft_s,
            tpot_slo_s=figures.tpot_s,
            exclude=exclude,
            prefer="colocated",
        )
        decision = place(request, candidates, core.fleet.ledger, core.now())
        if not isinstance(decision, Placement):
            return False
        choice.moving_why = why
        choice.step(legs.Move(decision))
        return True

    def _rebalance(self, now: float) -> None:
        core = self._core
        for digest in core.fleet.digests():
            by_key: dict[int, Choice] = {}

            def running(slot: int, found: "dict[int, Choice]" = by_key) -> list[Running]:
                found.clear()
                member = core.fleet.members[slot]
                if HAND_OFF not in member.hello.capabilities or now - self._moved_at.get(slot, float("-inf")) < SETTLE_S:
                    return []
                out = []
                for choice in self._choices(slot):
                    leg = choice.chain.leg
                    if leg is None or not choice.emitted or not _movable(choice, slot):
                        continue
                    found[leg.leg_id] = choice
                    figures = core.figures.classes[choice.answer.service_class]
                    left = choice.chain.max_tokens - choice.emitted
                    priority = figures.service_class.priority
                    out.append(Running(leg.leg_id, choice.prompt_len + choice.emitted, left, priority))
                return out

            proposal = propose(core.fleet.candidates(digest, now), core.fleet.ledger, running)
            if proposal is None:
                continue
            choice = by_key[proposal.key]
            if self._move(choice, f"rebalance_{proposal.reason}", only=proposal.target):
                self._moved_at = {slot: at for slot, at in self._moved_at.items() if now - at < SETTLE_S}
                self._moved_at[proposal.source] = now
                event(
                    log, "leg moves to find room", request_id=choice.answer.request_id, reason=proposal.reason,
                    source=core.worker_name(proposal.source), target=core.worker_name(proposal.target),
                    saved_s=round(proposal.saved_s, 4), lost_s=round(proposal.lost_s, 4),
                )  # fmt: skip


def _movable(choice: "Choice", slot: int) -> bool:
    """It runs there to its answer's end, and stays unless it is told to move."""
    leg = choice.chain.leg
    return leg is not None and leg.slot == slot and leg.kind != "prefill" and choice.chain.moving is None


def _moves(choice: "Choice") -> bool:
    """It was told to hand off and has not said anything at its new place."""
    if choice.answer.over or choice.finish:
        return False
    return choice.chain.moving is not None or (choice.leg is not None and not choice.leg.started)
