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
5. Placements without a new token are bounded: MAX_ATTEMPTS before the first token, MAX_ATTEMPTS_BEGUN after it. One that
   is not a first move off a lost worker spends the budget, and comes after a delay that doubles.
6. A stream under which more than MAX_LOSSES workers failed ends: it may be what kills them.
7. A leg goes on exactly from what the client has: outputs of any leg but the latest are dropped by its id.

`leg_id` is the id that a Start in this step takes: larger than any the edge used before. At most one leg starts per
step. Reasons of Fail: no_worker, worker_failed, worker_lost, refused, retries_exhausted, caller.
"""

from collections.abc import Iterable

from penstock_policy.legs.budget import MAX_ATTEMPTS, MAX_ATTEMPTS_BEGUN, MAX_LOSSES, RetryBudget
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
    HandOff,
    KvRef,
    LegEnded,
    LegFailed,
    LegKind,
    LegRef,
    LegSpec,
    LegStalled,
    Move,
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
    "MAX_ATTEMPTS_BEGUN",
    "MAX_LOSSES",
    "Abort",
    "Action",
    "Chain",
    "ClientGone",
    "Event",
    "Fail",
    "Fault",
    "Finish",
    "Finished",
    "HandOff",
    "KvRef",
    "LegEnded",
    "LegFailed",
    "LegKind",
    "LegRef",
    "LegSpec",
    "LegStalled",
    "Move",
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

FIRST_DELAY_S = 0.05
MAX_DELAY_S = 1.0

Step = tuple[Chain, tuple[Action, ...]]


def open_chain(prompt_len: int, max_tokens: int, lease_margin_s: float = LEASE_MARGIN_S) -> Step:
    return Chain(prompt_len, max_tokens, lease_margin_s), (Pick(frozenset(), "new", spends=False),)


def progress(chain: Chain, leg_id: int, tokens: int, chars_sent: int) -> Chain:
    """Tokens that a leg emitted. Outputs may be summed up, but before any event that follows them."""
    if chain.leg is None or chain.leg.leg_id != leg_id:
        return chain
    return chain._replace(emitted=chain.emitted + tokens, chars_sent=max(chain.chars_sent, chars_sent))


def step(chain: Chain, event: Event, now: float, leg_id: int, may_retry: bool = True) -> Step:
    match event:
        case Placed(placement):
            return _placed(chain, placement, now, leg_id)
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
            return _unplaced(chain, reason, message)
        case WorkerDraining(slot):
            return chain._replace(avoid=chain.avoid | {slot}), ()
        case Move(placement):
            return _move(chain, placement)
        case LegStalled(stalled):
            return _stalled(chain, stalled, leg_id)


def _placed(chain: Chain, placement: Placement, now: float, leg_id: int) -> Step:
    holds = [hold for hold in (placement.prefill_hold, placement.hold) if hold]
    if chain.phase != "placing":
        return chain, tuple(Release(hold) for hold in holds)
    kv, gone = chain.kv, chain.lost
    chain = chain._replace(
        placement=placement,
        holds=frozenset(holds),
        attempts=chain.attempts + 1,
        lost=frozenset(),
        avoid=frozenset(),
        kv=None,
    )
    if placement.prefill_slot is None:
        return _resume(chain, placement, None if kv is not None and kv.slot in gone else kv, (), now, leg_id)
    unwanted = () if kv is None or kv.slot in gone else (RejectKv(kv.slot, kv),)
    if chain.max_tokens - chain.emitted <= 1:
        # One token is the prefill itself: there is nothing to decode elsewhere.
        chain, released = _release(chain, [placement.hold])
        whole = LegSpec(leg_id, placement.prefill_slot, "whole", 0, None, placement.prefill_hold)
        return _start(chain, unwanted + released, whole)
    return _start(chain, unwanted, LegSpec(leg_id, placement.prefill_slot, "prefill", 1, None, placement.prefill_hold))


def _unplaced(chain: Chain, reason: str, message: str) -> Step:
    if chain.phase != "placing":
        return chain, ()
    return _give_up(chain, (), reason, message)


def _resume(chain: Chain, placement: Placement, kv: KvRef | None, actions: tuple[Action, ...], now: float, leg_id: int) -> Step:
    """One leg to the answer's end, on from KV where that may still be pulled."""
    if kv is not None and not _pulls(chain, kv, placement.slot, now):
        actions += _unwanted(chain, kv)
        kv = None
    kind: LegKind = "handoff" if kv is not None else "resume" if chain.emitted else "whole"
    return _start(chain, actions, LegSpec(leg_id, placement.slot, kind, 0, kv, placement.hold))


def _pulls(chain: Chain, kv: KvRef, slot: int, now: float) -> bool:
    """Past the lease an engine returns wrong tokens without an error: computing again is exact."""
    return slot != kv.slot and kv.slot not in chain.lost and now < kv.expires_at - chain.lease_margin_s


def _ended(chain: Chain, finish: Finish, kv: KvRef | None, now: float, leg_id: int, may_retry: bool) -> Step:
    leg = chain.leg
    assert leg is not None
    if finish in (Finish.STOP, Finish.LENGTH):
        return _finish(chain, _unwanted(chain, kv), finish)
    if finish is not Finish.LEG_END:
        # An engine that ends a leg unasked has failed it.
        chain, actions = _failed(chain, "worker", f"leg ended with {finish.name}", "", leg_id, may_retry)
        return chain, _unwanted(chain, kv) + actions
    if chain.emitted >= chain.max_tokens:
        return _finish(chain, _unwanted(chain, kv), Finish.LENGTH)
    if leg.kind == "prefill":
        return _decode(chain, kv, now, leg_id)
    return _handed_off(chain, kv, now, leg_id)


def _decode(chain: Chain, kv: KvRef | None, now: float, leg_id: int) -> Step:
    """The prefill is done: go on at the decode worker, or wherever else if that one died or drains meanwhile."""
    leg, placement = chain.leg, chain.placement
    assert leg is not None and placement is not None
    if placement.slot in chain.lost | chain.avoid:
        return _place_again(chain, (), kv, chain.exclude | {placement.slot}, "decode_worker_gone")
    actions: tuple[Action, ...] = ()
    if kv is not None and not _pulls(chain, kv, placement.slot, now):
        actions = _unwanted(chain, kv)
        kv = None
    chain, released = _release(chain, [placement.prefill_hold])
    return _start(chain, actions + released, LegSpec(leg_id, placement.slot, "decode", 0, kv, placement.hold))


def _move(chain: Chain, placement: Placement) -> Step:
    leg = chain.leg
    if leg is None or leg.kind == "prefill" or chain.moving is not None or placement.slot in chain.lost | {leg.slot}:
        return chain, tuple(Release(hold) for hold in (placement.prefill_hold, placement.hold) if hold)
    moved = chain._replace(moving=placement, holds=chain.holds | {placement.hold})
    return moved, (HandOff(leg.slot, leg.leg_id),)


def _handed_off(chain: Chain, kv: KvRef | None, now: float, leg_id: int) -> Step:
    """The leg ended with its KV held, asked or (a worker that must go) unasked."""
    leg, target = chain.leg, chain.moving
    assert leg is not None
    untaken = _unwanted(chain, leg.kv) if chain.emitted == leg.emitted_before else ()
    if chain.emitted > leg.emitted_before:
        chain = chain._replace(attempts=0, exclude=frozenset())
    if target is None or target.slot in chain.lost | chain.avoid:
        if chain.attempts >= MAX_ATTEMPTS_BEGUN:
            return _give_up(chain, untaken + _unwanted(chain, kv), "retries_exhausted", "legs end without a token")
        return _place_again(chain, untaken, kv, chain.exclude | {leg.slot}, "handoff")
    return _to_target(chain, target, kv, untaken, now, leg_id)


def _to_target(chain: Chain, target: Placement, kv: KvRef | None, actions: tuple[Action, ...], now: float, leg_id: int) -> Step:
    """Go on where the leg was to move: of all bookings only that one stays."""
    chain, released = _release(chain, sorted(chain.holds - {target.hold}))
    chain = chain._replace(placement=target, moving=None, attempts=chain.attempts + 1)
    return _resume(chain, target, kv, actions + released, now, leg_id)


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
    # A worker that drains says so to a leg already on its way: no sign of trouble the first time.
    spends = fault != "refused" or chain.attempts > 1
    return _elsewhere(chain, untaken, reason, message, leg_id, may_retry, spends)


def _lost(chain: Chain, slot: int, leg_id: int, may_retry: bool) -> Step:
    leg = chain.leg
    if chain.phase == "done":
        return chain, ()
    chain = chain._replace(lost=chain.lost | {slot})
    if leg is None:
        return chain, ()
    dropped: tuple[Action, ...] = ()
    if chain.moving is not None and chain.moving.slot == slot:
        chain, dropped = _release(chain._replace(moving=None), [chain.moving.hold])
    silent = chain.emitted == leg.emitted_before
    if leg.slot != slot:
        if leg.kv is None or leg.kv.slot != slot or not silent:
            return chain, dropped
        # A pull from a dead peer ends only by its timeout: the same worker computes it instead, or the one it moves to.
        dropped += (Abort(leg.slot, leg.leg_id),)
        if chain.moving is not None:
            return _elsewhere(chain, dropped, "worker_lost", "its KV is gone", leg_id, may_retry, spends=False)
        return _start(chain, dropped, LegSpec(leg_id, leg.slot, leg.kind, 0, None, leg.hold))
    untaken = _unwanted(chain, leg.kv) if silent else ()
    # A death moves all of its legs at once, and once: the budget bounds what comes after.
    spends = silent and chain.attempts > 1
    return _elsewhere(chain, dropped + untaken, "worker_lost", "the worker is gone", leg_id, may_retry, spends)


def _stalled(chain: Chain, stalled: int, leg_id: int) -> Step:
    """The same worker computes what it could not pull; where the leg moves anyway, its end is waited for."""
    leg = chain.leg
    if leg is None or leg.leg_id != stalled or leg.kv is None:
        return chain, ()
    if chain.emitted > leg.emitted_before or chain.moving is not None:
        return chain, ()
    actions = (Abort(leg.slot, stalled), *_unwanted(chain, leg.kv))
    return _start(chain, actions, LegSpec(leg_id, leg.slot, leg.kind, 0, None, leg.hold))


def _elsewhere(
    chain: Chain, actions: tuple[Action, ...], reason: str, message: str, leg_id: int, may_retry: bool, spends: bool
) -> Step:
    """A worker could not run its leg: another goes on from what the client has."""
    leg = chain.leg
    assert leg is not None
    if chain.emitted >= chain.max_tokens:
        return _finish(chain, actions, Finish.LENGTH)  # a worker that sent it all and not that this was all
    if chain.emitted > leg.emitted_before:
        chain = chain._replace(attempts=0, exclude=frozenset())  # what failed before it is history
    chain = chain._replace(exclude=chain.exclude | {leg.slot}, losses=chain.losses + 1)
    if chain.losses > MAX_LOSSES:
        return _give_up(chain, actions, "retries_exhausted", f"{chain.losses} workers failed it, last {reason}: {message}")
    target = chain.moving
    if target is not None and target.slot not in chain.lost | chain.avoid:
        return _to_target(chain, target, None, actions, 0.0, leg_id)
    most = MAX_ATTEMPTS_BEGUN if chain.emitted else MAX_ATTEMPTS
    if chain.attempts >= most or (spends and not may_retry and not chain.emitted):
        return _give_up(chain, actions, "retries_exhausted", f"{reason}: {message}")
    return _place_again(chain, actions, None, chain.exclude, reason, spends)


def _place_again(
    chain: Chain, actions: tuple[Action, ...], kv: KvRef | None, exclude: frozenset[int], why: str, spends: bool = False
) -> Step:
    """Give the placement back and ask for another."""
    delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** (chain.attempts - 2)) if chain.attempts > 1 and kv is None else 0.0
    released = tuple(Release(hold) for hold in sorted(chain.holds))
    chain = chain._replace(phase="placing", leg=None, placement=None, moving=None, holds=frozenset(), exclude=exclude, kv=kv)
    return chain, (*actions, *released, Pick(exclude, why, spends, delay_s))


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
    return chain._replace(phase="running", leg=ref), (*actions, Start(leg))


def _unwanted(chain: Chain, kv: KvRef | None) -> tuple[Action, ...]:
    return () if kv is None or kv.slot in chain.lost else (RejectKv(kv.slot, kv),)


def _release(chain: Chain, holds: Iterable[int]) -> tuple[Chain, tuple[Action, ...]]:
    known = [hold for hold in holds if hold in chain.holds]
    return chain._replace(holds=chain.holds.difference(known)), tuple(Release(hold) for hold in known)


def _end(chain: Chain, actions: tuple[Action, ...]) -> Step:
    actions += _unwanted(chain, chain.kv)
    released = tuple(Release(hold) for hold in sorted(chain.holds))
    return chain._replace(phase="done", leg=None, moving=None, kv=None, holds=frozenset()), actions + released


def _finish(chain: Chain, actions: tuple[Action, ...], reason: Finish) -> Step:
    return _end(chain, (*actions, Finished(reason)))


def _give_up(chain: Chain, actions: tuple[Action, ...], reason: str, message: str) -> Step:
    """Nobody can go on: to ask again is safe only where nothing was sent."""
    return _fail(chain, actions, "aborted" if chain.emitted else "unavailable", reason, message)


def _fail(chain: Chain, actions: tuple[Action, ...], status: Status, reason: str, message: str, field: str = "") -> Step:
    return _end(chain, (*actions, Fail(status, reason, message, field)))
