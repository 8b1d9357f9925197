"""One choice of a request as a chain of legs: what to do after each thing that happens.

    chain, actions = open_chain(prompt_len, max_tokens)
    chain = progress(chain, leg_id, tokens, chars_sent)              # each output, before its end is reported
    chain, actions = step(chain, event, now, leg_id, may_retry)      # everything else

Promises, each a property test:
1. A chain ends exactly once: Finished, Fail, or nothing more after ClientGone.
2. Every leg that was started ends by itself, is aborted, or is lost with its worker.
3. KV is passed to at most one leg, never later than its lease less the margin, and is rejected where no leg that
   produced output took it.
4. Every hold is released exactly once.
5. No more than MAX_ATTEMPTS placements; a retry that is not a first move off a lost worker spends the budget.

`leg_id` is the id that a Start in this step takes: larger than any the edge used before. At most one leg starts per
step. Reasons of Fail: no_worker, worker_failed, worker_lost, refused, retries_exhausted, caller.
"""

from collections.abc import Iterable
from dataclasses import replace

from penstock_policy.legs.budget import MAX_ATTEMPTS, RetryBudget
from penstock_policy.legs.chain import (
    LEASE_MARGIN_S,
    Abort,
    Action,
    Chain,
    ClientGone,
    Event,
    Fail,
    Fault,
    Finish,
    Finished,
    KvRef,
    LegEnded,
    LegFailed,
    LegKind,
    LegRef,
    LegSpec,
    Pick,
    Placed,
    RejectKv,
    Release,
    Start,
    Status,
    Unplaced,
    WorkerDraining,
    WorkerLost,
)
from penstock_policy.pick.decision import Placement

__all__ = [
    "LEASE_MARGIN_S",
    "MAX_ATTEMPTS",
    "Abort",
    "Action",
    "Chain",
    "ClientGone",
    "Event",
    "Fail",
    "Fault",
    "Finish",
    "Finished",
    "KvRef",
    "LegEnded",
    "LegFailed",
    "LegKind",
    "LegRef",
    "LegSpec",
    "Pick",
    "Placed",
    "RejectKv",
    "Release",
    "RetryBudget",
    "Start",
    "Status",
    "Unplaced",
    "WorkerDraining",
    "WorkerLost",
    "open_chain",
    "progress",
    "step",
]

Step = tuple[Chain, tuple[Action, ...]]


def open_chain(prompt_len: int, max_tokens: int, lease_margin_s: float = LEASE_MARGIN_S) -> Step:
    return Chain(prompt_len, max_tokens, lease_margin_s), (Pick(frozenset(), "new", spends=False),)


def progress(chain: Chain, leg_id: int, tokens: int, chars_sent: int) -> Chain:
    """Tokens that a leg emitted. Outputs may be summed up, but before any event that follows them."""
    if chain.leg is None or chain.leg.leg_id != leg_id:
        return chain
    return replace(chain, emitted=chain.emitted + tokens, chars_sent=max(chain.chars_sent, chars_sent))


def step(chain: Chain, event: Event, now: float, leg_id: int, may_retry: bool = True) -> Step:
    match event:
        case Placed(placement):
            return _placed(chain, placement, leg_id)
        case LegEnded(ended, finish, kv):
            if not chain.accepts(ended):
                return chain, _unwanted(chain, kv)
            return _ended(chain, finish, kv, now, leg_id, may_retry)
        case LegFailed(failed, fault, message, field):
            if not chain.accepts(failed):
                return chain, ()
            return _failed(chain, fault, message, field, leg_id, may_retry)
        case WorkerLost(slot):
            return _lost(chain, slot, leg_id, may_retry)
        case ClientGone():
            return _gone(chain)
        case Unplaced(reason, message):
            if chain.phase != "placing":
                return chain, ()
            return _fail(chain, (), "unavailable", reason, message)
        case WorkerDraining():
            return chain, ()


def _placed(chain: Chain, placement: Placement, leg_id: int) -> Step:
    holds = [hold for hold in (placement.prefill_hold, placement.hold) if hold]
    if chain.phase != "placing":
        return chain, tuple(Release(hold) for hold in holds)
    chain = replace(
        chain,
        placement=placement,
        holds=frozenset(holds),
        attempts=chain.attempts + 1,
        lost=frozenset(),
    )
    if placement.prefill_slot is None:
        kind: LegKind = "resume" if chain.emitted else "whole"
        return _start(chain, (), LegSpec(leg_id, placement.slot, kind, 0, None, placement.hold))
    if chain.max_tokens - chain.emitted <= 1:
        # One token is the prefill itself: there is nothing to decode elsewhere.
        chain, released = _release(chain, [placement.hold])
        return _start(chain, released, LegSpec(leg_id, placement.prefill_slot, "whole", 0, None, placement.prefill_hold))
    return _start(chain, (), LegSpec(leg_id, placement.prefill_slot, "prefill", 1, None, placement.prefill_hold))


def _ended(chain: Chain, finish: Finish, kv: KvRef | None, now: float, leg_id: int, may_retry: bool) -> Step:
    leg = chain.leg
    assert leg is not None
    if finish in (Finish.STOP, Finish.LENGTH):
        return _finish(chain, _unwanted(chain, kv), finish)
    if finish is not Finish.LEG_END or leg.kind != "prefill":
        # An engine that ends a leg unasked (a drain's hand-off until that is built, an abort of its own) has failed it.
        chain, actions = _failed(chain, "worker", f"leg ended with {finish.name}", "", leg_id, may_retry)
        return chain, _unwanted(chain, kv) + actions
    if chain.emitted >= chain.max_tokens:
        return _finish(chain, _unwanted(chain, kv), Finish.LENGTH)
    return _decode(chain, kv, now, leg_id)


def _decode(chain: Chain, kv: KvRef | None, now: float, leg_id: int) -> Step:
    """The prefill is done: go on at the decode worker, or where the prompt's blocks are if that one died meanwhile."""
    leg, placement = chain.leg, chain.placement
    assert leg is not None and placement is not None
    actions: tuple[Action, ...] = ()
    slot = placement.slot
    if slot in chain.lost:
        slot = leg.slot
    if kv is not None and (slot == leg.slot or now >= kv.expires_at - chain.lease_margin_s):
        # Past the lease an engine returns wrong tokens without an error: computing again is exact.
        actions = _unwanted(chain, kv)
        kv = None
    chain, released = _release(chain, [placement.prefill_hold])
    return _start(chain, actions + released, LegSpec(leg_id, slot, "decode", 0, kv, placement.hold))


def _failed(chain: Chain, fault: Fault, message: str, field: str, leg_id: int, may_retry: bool) -> Step:
    leg = chain.leg
    assert leg is not None
    silent = chain.emitted == leg.emitted_before
    untaken = _unwanted(chain, leg.kv) if silent else ()
    if fault == "caller":
        status: Status = "aborted" if chain.emitted else "invalid_argument"
        return _fail(chain, untaken, status, "caller", message, field)
    if fault == "transfer" and silent and leg.kv is not None:
        # The same worker computes it: exact, because a leg goes on from the emitted count.
        return _start(chain, untaken, LegSpec(leg_id, leg.slot, leg.kind, 0, None, leg.hold))
    reason = "refused" if fault == "refused" else "worker_failed"
    return _elsewhere(chain, untaken, leg.slot, reason, message, leg_id, may_retry, spends=True)


def _lost(chain: Chain, slot: int, leg_id: int, may_retry: bool) -> Step:
    leg = chain.leg
    if chain.phase != "running" or leg is None:
        return chain, ()
    chain = replace(chain, lost=chain.lost | {slot})
    if leg.slot != slot:
        return chain, ()
    untaken = _unwanted(chain, leg.kv) if chain.emitted == leg.emitted_before else ()
    # A death moves all of its legs at once, and once: the budget bounds what comes after.
    spends = chain.attempts > 1
    return _elsewhere(chain, untaken, slot, "worker_lost", "the worker is gone", leg_id, may_retry, spends)


def _elsewhere(
    chain: Chain,
    actions: tuple[Action, ...],
    slot: int,
    reason: str,
    message: str,
    leg_id: int,
    may_retry: bool,
    spends: bool,
) -> Step:
    """A worker could not run its leg: another may, while the client has nothing that a new answer could contradict."""
    chain = replace(chain, exclude=chain.exclude | {slot})
    if chain.emitted:
        return _go_on(chain, actions, reason, message, leg_id)
    if chain.attempts >= MAX_ATTEMPTS or (spends and not may_retry):
        return _fail(chain, actions, "unavailable", "retries_exhausted", f"{reason}: {message}")
    released = tuple(Release(hold) for hold in sorted(chain.holds))
    chain = replace(chain, phase="placing", leg=None, placement=None, holds=frozenset())
    return chain, (*actions, *released, Pick(chain.exclude, reason, spends))


def _go_on(chain: Chain, actions: tuple[Action, ...], reason: str, message: str, leg_id: int) -> Step:
    """A begun stream lost its worker. The one place to change for failover of begun streams.

    A decode leg that produced nothing can run on the worker that prefilled: its cache has the prompt.
    """
    leg, placement = chain.leg, chain.placement
    assert leg is not None and placement is not None
    home = placement.prefill_slot
    if (
        leg.kind == "decode"
        and chain.emitted == leg.emitted_before
        and home is not None
        and home not in chain.exclude | chain.lost
    ):
        return _start(chain, actions, LegSpec(leg_id, home, "decode", 0, None, leg.hold))
    return _fail(chain, actions, "aborted", reason, message)


def _gone(chain: Chain) -> Step:
    if chain.phase == "done":
        return chain, ()
    leg = chain.leg
    actions: tuple[Action, ...] = ()
    if leg is not None:
        actions = (Abort(leg.slot, leg.leg_id),)
        if chain.emitted == leg.emitted_before:
            actions += _unwanted(chain, leg.kv)
    return _end(chain, actions)


def _start(chain: Chain, actions: tuple[Action, ...], leg: LegSpec) -> Step:
    ref = LegRef(leg.leg_id, leg.slot, leg.kind, leg.kv, leg.hold, chain.emitted)
    return replace(chain, phase="running", leg=ref), (*actions, Start(leg))


def _unwanted(chain: Chain, kv: KvRef | None) -> tuple[Action, ...]:
    return () if kv is None or kv.slot in chain.lost else (RejectKv(kv.slot, kv),)


def _release(chain: Chain, holds: Iterable[int]) -> tuple[Chain, tuple[Action, ...]]:
    known = [hold for hold in holds if hold in chain.holds]
    return replace(chain, holds=chain.holds.difference(known)), tuple(Release(hold) for hold in known)


def _end(chain: Chain, actions: tuple[Action, ...]) -> Step:
    released = tuple(Release(hold) for hold in sorted(chain.holds))
    return replace(chain, phase="done", leg=None, holds=frozenset()), actions + released


def _finish(chain: Chain, actions: tuple[Action, ...], reason: Finish) -> Step:
    return _end(chain, (*actions, Finished(reason)))


def _fail(chain: Chain, actions: tuple[Action, ...], status: Status, reason: str, message: str, field: str = "") -> Step:
    return _end(chain, (*actions, Fail(status, reason, message, field)))
