"""The legs machine under any history of events: its promises hold, whatever workers and clients do."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leg_places import MARGIN, WORKERS, placement

from penstock_policy.legs.machine import (
    MAX_ATTEMPTS,
    MAX_ATTEMPTS_BEGUN,
    Abort,
    ClientGone,
    Fail,
    Finish,
    Finished,
    HandOff,
    KvRef,
    LegEnded,
    LegFailed,
    LegStalled,
    Move,
    Pick,
    Placed,
    RejectKv,
    Release,
    Start,
    Unplaced,
    WorkerDraining,
    WorkerLost,
    open_chain,
    progress,
    step,
)


class World:
    """A router's edge with workers that do what they are told, or fail; keeps the promises' books."""

    def __init__(self, max_tokens):
        self.now, self.leg_id, self.hold = 0.0, 0, 0
        self.running = {}  # leg id -> slot, legs that workers still run
        self.legs = {}  # leg id -> LegSpec
        self.holds, self.released = [], []
        self.kvs, self.rejected = [], []
        self.taken = {}  # id of kv -> leg id
        self.used = set()  # legs that produced output or ended the answer
        self.ends, self.gone, self.placings, self.spent = [], False, 0, 0
        self.max_tokens, self.lost = max_tokens, set()
        self.chain, actions = open_chain(20, max_tokens, MARGIN)
        self.do(actions)

    def do(self, actions):
        starts = 0
        for action in actions:
            match action:
                case Start(leg):
                    starts += 1
                    assert not self.ends and not self.gone and leg.leg_id == self.leg_id
                    assert leg.hold in self.holds and leg.hold not in self.released
                    assert leg.slot not in self.lost, "a leg on a worker known to be dead"
                    self.running[leg.leg_id], self.legs[leg.leg_id] = leg.slot, leg
                    if leg.kv is not None:
                        assert id(leg.kv) not in self.taken and self.now < leg.kv.expires_at - MARGIN
                        assert not any(kv is leg.kv for kv in self.rejected)
                        self.taken[id(leg.kv)] = leg.leg_id
                case Abort(slot, leg_id):
                    assert self.running.pop(leg_id) == slot
                case RejectKv(slot, kv):
                    assert kv.slot == slot and not any(kv is other for other in self.rejected)
                    self.rejected.append(kv)
                case Release(hold):
                    self.released.append(hold)
                case HandOff(slot, leg_id):
                    assert self.running[leg_id] == slot and leg_id == self.chain.leg.leg_id
                case Pick(exclude, _, spends, delay_s):
                    assert 0 <= delay_s <= 1
                    self.placings += 1
                    self.spent += spends
                    assert not self.running and self.chain.phase == "placing"
                    assert exclude == self.chain.exclude
                case Finished() | Fail():
                    self.ends.append(action)
        assert starts <= 1 and len(self.running) <= 1

    def tell(self, event, may_retry=True):
        self.leg_id += 1
        self.chain, actions = step(self.chain, event, self.now, self.leg_id, may_retry)
        self.do(actions)

    def new_hold(self):
        self.hold += 1
        self.holds.append(self.hold)
        return self.hold

    def make_kv(self, slot, lease):
        kv = KvRef(slot, 21, self.now + lease)
        if slot not in self.lost:
            self.kvs.append(kv)
        return kv

    def act(self, kind, a, b, flag):
        leg_id, slot = next(iter(self.running.items()), (0, 0))
        if kind in ("tokens", "end", "fail"):
            if leg_id:
                getattr(self, kind)(leg_id, slot, a, b, flag)
        else:
            getattr(self, kind)(slot, a, b, flag)

    def tokens(self, leg_id, slot, a, b, flag):
        room = self.max_tokens - self.chain.emitted
        count = min(1 + a, room, self.legs[leg_id].max_leg_tokens or room)
        self.chain = progress(self.chain, leg_id, count, self.chain.chars_sent)
        if count:
            self.used.add(leg_id)

    def end(self, leg_id, slot, a, b, flag):
        del self.running[leg_id]
        finish = (Finish.STOP, Finish.LENGTH, Finish.LEG_END, Finish.LEG_END, Finish.LEG_END, Finish.ABORT)[a % 6]
        if finish in (Finish.STOP, Finish.LENGTH):
            self.used.add(leg_id)
        with_kv = flag and finish is not Finish.ABORT
        self.tell(LegEnded(leg_id, finish, self.make_kv(slot, b) if with_kv else None), b != 3)

    def fail(self, leg_id, slot, a, b, flag):
        del self.running[leg_id]
        self.tell(LegFailed(leg_id, ("caller", "worker", "transfer", "refused")[a % 4]), flag)

    def place(self, slot, a, b, flag):
        if self.chain.phase == "placing":
            self.lost.clear()
        usable = [w for w in WORKERS if w not in self.chain.exclude] or list(WORKERS)
        where, other = usable[a % len(usable)], usable[b % len(usable)]
        if flag and where != other:
            self.tell(Placed(placement(where, other, self.new_hold(), self.new_hold())))
        else:
            self.tell(Placed(placement(where, None, self.new_hold())))

    def lose(self, slot, a, b, flag):
        lost = slot if flag and slot else WORKERS[a % len(WORKERS)]
        self.running = {leg_id: where for leg_id, where in self.running.items() if where != lost}
        self.lost.add(lost)
        self.kvs = [kv for kv in self.kvs if kv.slot != lost]
        self.tell(WorkerLost(lost), b != 3)

    def stale(self, slot, a, b, flag):
        """A leg that no longer counts: whatever it says changes nothing, and its KV is rejected."""
        old = [leg_id for leg_id in sorted(self.legs) if leg_id not in self.running]
        if not old:
            return
        leg_id = old[a % len(old)]
        before = self.chain
        self.chain = progress(self.chain, leg_id, 3, 99)
        if flag:
            self.tell(LegEnded(leg_id, Finish.LEG_END, self.make_kv(self.legs[leg_id].slot, b)))
        else:
            self.tell(LegFailed(leg_id, "worker"))
        assert self.chain == before

    def unplaced(self, slot, a, b, flag):
        self.tell(Unplaced("none_ready"))

    def drain(self, slot, a, b, flag):
        self.tell(WorkerDraining(WORKERS[a % len(WORKERS)]))

    def move(self, slot, a, b, flag):
        usable = [w for w in WORKERS if w not in self.lost]
        if usable:
            self.tell(Move(placement(usable[a % len(usable)], None, self.new_hold())))

    def stall(self, slot, a, b, flag):
        if self.running:
            self.tell(LegStalled(next(iter(self.running))))

    def leave(self, slot, a, b, flag):
        self.tell(ClientGone())
        self.gone = True

    def wait(self, slot, a, b, flag):
        self.now += b


kinds = ["place"] * 4 + ["tokens"] * 4 + ["end"] * 4
kinds += ["fail", "fail", "lose", "move", "move", "stall", "stale", "drain", "wait", "unplaced", "leave"]
histories = st.lists(
    st.tuples(st.sampled_from(kinds), st.integers(0, 5), st.integers(0, 5), st.booleans()), min_size=4, max_size=24
)


def expect_promises_kept(max_tokens, history):
    world = World(max_tokens)
    for kind, a, b, flag in history:
        world.act(kind, a, b, flag)
        assert len(world.ends) <= 1
        assert (world.chain.phase == "done") == bool(world.ends or world.gone)
        assert world.chain.attempts <= (MAX_ATTEMPTS_BEGUN if world.chain.emitted else MAX_ATTEMPTS + 2)
        open_holds = set(world.holds) - set(world.released)
        assert open_holds == set(world.chain.holds) and len(world.released) == len(set(world.released))
    world.tell(ClientGone())
    assert not world.running and set(world.released) == set(world.holds)
    for kv in world.kvs:
        rejected = any(kv is other for other in world.rejected)
        assert rejected or world.taken.get(id(kv)) in world.used
    assert world.chain.emitted <= max_tokens
    return world


@pytest.mark.slow
@given(st.integers(1, 4), histories)
@settings(max_examples=200, deadline=None)
def test_every_history_keeps_the_promises(max_tokens, history):
    expect_promises_kept(max_tokens, history)


@pytest.mark.slow
def test_thousands_of_histories_keep_the_promises_and_go_everywhere():
    rng = random.Random(11)
    seen = dict.fromkeys(("finished", "pulled", "recomputed", "retried", "aborted", "unavailable", "resumed", "handed"), 0)
    for _ in range(5000):
        history = [
            (rng.choice(kinds), rng.randrange(6), rng.randrange(6), rng.random() < 0.7) for _ in range(rng.randrange(4, 24))
        ]
        world = expect_promises_kept(rng.randrange(1, 5), history)
        decodes = [leg for leg in world.legs.values() if leg.kind == "decode"]
        ends = [getattr(end, "status", "finished") for end in world.ends]
        seen["finished"] += "finished" in ends
        seen["aborted"] += "aborted" in ends
        seen["unavailable"] += "unavailable" in ends
        seen["pulled"] += any(leg.kv is not None for leg in decodes)
        seen["recomputed"] += any(leg.kv is None for leg in decodes)
        seen["retried"] += world.placings > 1
        seen["resumed"] += any(leg.kind == "resume" for leg in world.legs.values())
        seen["handed"] += any(leg.kind == "handoff" for leg in world.legs.values())
    assert min(seen.values()) >= 20, seen
