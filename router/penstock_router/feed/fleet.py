"""The router's view of its workers: who they are, what they hold, what they cost, how busy they are.

Promise: one owner, synchronous, no I/O. A slot means one incarnation of one worker and is never used again: a request
that was failed by a worker avoids that slot, not its successor. KV events are applied exactly in sequence, or not at all
until a snapshot has come.
"""

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from penstock_policy.cache.index import KvIndex
from penstock_policy.cost.model import PRIOR, TRANSFER_PRIOR, CostObservation, StepCost, TransferCost, pool, settle
from penstock_policy.health.freshness import classify
from penstock_policy.health.outliers import Ejection, Record, ejected, failed, share, succeeded
from penstock_policy.pick.decision import Candidate, Role
from penstock_policy.pick.ledger import LoadLedger, LoadObservation
from penstock_proto.v1.fleet_pb2 import CostReport, Hello, KvDelta, KvOp, KvSnapshot, LoadReport

REFRESH_S = 0.1  # how old freshness may be when a request is placed
POOL_S = 1.0  # how old the costs may be that workers of one shape share
PRIORS = (PRIOR, TRANSFER_PRIOR)
MAX_PENDING_DELTAS = 10_000
MIN_STEP_S = 1e-6  # no step takes nothing; predictions are divided by it

Identity = tuple[str, int]
ROLES: Final[dict[str, Role]] = {"prefill": "prefill", "decode": "decode", "both": "both"}


@dataclass(slots=True, eq=False)
class Member:
    """One incarnation of one worker."""

    slot: int
    hello: Hello
    heard_at: float
    joined: bool = True
    attached: bool = False
    has_text: bool = False  # its model's files are loaded here
    draining: str = ""
    load: LoadReport = field(default_factory=LoadReport)
    cost: CostObservation | None = None
    next_seq: int | None = None  # None: no snapshot yet, deltas mean nothing
    pending: list[KvDelta] = field(default_factory=list)  # deltas between a snapshot's chunks
    chunk: int = 0
    gone: bool = False
    legs: int = 0
    candidate: Candidate | None = None
    made_of: tuple[object, ...] = ()  # what the candidate was made of

    @property
    def identity(self) -> Identity:
        return self.hello.worker_id, self.hello.dp_rank

    @property
    def name(self) -> str:
        return self.hello.worker_id if not self.hello.dp_rank else f"{self.hello.worker_id}/{self.hello.dp_rank}"


def hashes(data: bytes) -> "array[int]":
    out = array("Q")
    out.frombytes(data)
    return out


class Fleet:
    """The view."""

    def __init__(
        self,
        *,
        stale_after_s: float = 1.0,
        panic_threshold: float = 0.5,
        forget_after_s: float = 5.0,
        ejection: Ejection = Ejection(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        self.index = KvIndex()
        self.ledger = LoadLedger(seed)
        self.members: dict[int, Member] = {}
        self.panic = False
        self.fresh: frozenset[int] = frozenset()
        self.on_gone: Callable[[Member], None] = lambda member: None
        self.on_change: Callable[[], None] = lambda: None
        self.on_draining: Callable[[Member], None] = lambda member: None
        self.ejection = ejection
        self._health: dict[int, Record] = {}  # by slot, of those that have failed
        self._stale_after_s = stale_after_s
        self._panic_threshold = panic_threshold
        self._forget_after_s = forget_after_s
        self._by_identity: dict[Identity, Member] = {}
        self._candidates: dict[str, tuple[Candidate, ...]] = {}
        self._built_at = float("-inf")
        self._pooled: dict[str, tuple[StepCost, TransferCost]] = {}  # by shape
        self._pooled_at = float("-inf")
        self._unpooled = False  # a cost came since
        self._next_slot = 0

    # Joining and leaving.

    def hello(self, hello: Hello, now: float) -> tuple[Member, Member | None]:
        """The member that says hello, and the incarnation it replaces. The caller ends the old one's legs."""
        identity = (hello.worker_id, hello.dp_rank)
        known = self._by_identity.get(identity)
        if known is not None and known.hello.incarnation == hello.incarnation:
            known.hello = hello
            known.joined, known.heard_at = True, now
            known.next_seq = None
            known.pending.clear()
            self._dirty()
            return known, None
        if known is not None:
            self.forget(known)
        slot = self._next_slot
        self._next_slot += 1
        member = Member(slot, hello, now)
        self.members[slot] = self._by_identity[identity] = member
        self.index.add_worker(slot)
        self._dirty()
        return member, known

    def known(self, hello: Hello) -> Member | None:
        """The incarnation that says hello, if it has before."""
        member = self._by_identity.get((hello.worker_id, hello.dp_rank))
        return member if member is not None and member.hello.incarnation == hello.incarnation else None

    def left(self, member: Member) -> None:
        """Its report stream ended. It may be back within a moment, so nothing is dropped yet."""
        member.joined = False
        member.next_seq = None
        self._dirty()

    def forget(self, member: Member) -> None:
        """Drops a member; `on_gone` ends what still runs there."""
        if member.gone:
            return
        member.gone = True
        self.on_gone(member)
        self.members.pop(member.slot, None)
        if self._by_identity.get(member.identity) is member:
            del self._by_identity[member.identity]
        self.index.drop_worker(member.slot)
        self.ledger.drop(member.slot)
        self._health.pop(member.slot, None)
        self._dirty()

    def sweep(self, now: float) -> list[Member]:
        """Forgets members whose stream is gone for long and that nothing connects us to any more."""
        lost = [
            m
            for m in self.members.values()
            if not m.joined and now - m.heard_at > self._forget_after_s and not (m.attached and m.legs)
        ]
        for member in lost:
            self.forget(member)
        return lost

    # Reports.

    def snapshot(self, member: Member, snapshot: KvSnapshot) -> bool:
        """False: chunks are missing, a new snapshot is needed."""
        if snapshot.chunk == 0:
            member.next_seq = None
            member.pending.clear()
            self.index.cleared(member.slot)
        elif snapshot.chunk != member.chunk + 1:
            return False
        member.chunk = snapshot.chunk
        self.index.stored(member.slot, hashes(snapshot.hashes))
        if not snapshot.last:
            return True
        member.next_seq = snapshot.next_seq
        pending, member.pending = member.pending, []
        return all(self.delta(member, delta) for delta in pending if delta.seq >= snapshot.next_seq)

    def delta(self, member: Member, delta: KvDelta) -> bool:
        """False: the sequence has a gap; deltas are ignored until a snapshot has come."""
        if member.next_seq is None:
            if len(member.pending) < MAX_PENDING_DELTAS:
                member.pending.append(delta)
            return True
        if delta.seq != member.next_seq:
            if delta.seq < member.next_seq:
                return True  # what the snapshot already says
            member.next_seq = None
            member.pending.clear()
            return False
        member.next_seq += 1
        index, slot = self.index, member.slot
        for op in delta.ops:
            if op.kind == KvOp.STORED:
                index.stored(slot, hashes(op.hashes))
            elif op.kind == KvOp.REMOVED:
                index.removed(slot, hashes(op.hashes))
            elif op.kind == KvOp.CLEARED:
                index.cleared(slot)
        return True

    def load(self, member: Member, report: LoadReport, now: float) -> None:
        member.load = report
        self.ledger.report(
            member.slot,
            LoadObservation(
                running=report.running,
                waiting=report.waiting,
                prefill_tokens=report.prefill_tokens,
                context_tokens=report.context_tokens,
                kv_usage=report.kv_usage,
                last_leg_id=report.last_leg_id,
            ),
            now,
        )

    def cost(self, member: Member, report: CostReport) -> None:
        member.cost = CostObservation(
            shape=member.hello.shape,
            step=StepCost(max(report.base_s, MIN_STEP_S), report.prefill_s, report.decode_s, report.context_s),
            samples=report.samples,
            transfer=TransferCost(report.transfer_base_s, report.transfer_token_s),
            transfers=report.transfers,
        )
        self._unpooled = True
        if member.cost.shape not in self._pooled:
            self._pooled_at = float("-inf")

    def drain(self, member: Member, reason: str) -> None:
        member.draining = reason or "draining"
        self._dirty()
        self.on_draining(member)

    # Health.

    def failed(self, slot: int, now: float) -> bool:
        """A worker lost its link, or a leg by its own fault. True: it is ejected from now on."""
        if slot not in self.members:
            return False
        before = self._health.get(slot, Record())
        after = failed(before, len(ejected(self._health, now)), len(self.members), now, self.ejection)
        self._health[slot] = after
        if after.until == before.until:
            return False
        self._dirty()
        return True

    def succeeded(self, slot: int, now: float) -> None:
        record = self._health.get(slot)
        if record is None:
            return
        record = succeeded(record, now, self.ejection)
        if record.failures or record.ejections:
            self._health[slot] = record
        else:
            del self._health[slot]

    def attached(self, member: Member, yes: bool) -> None:
        member.attached = yes
        self._dirty()

    def text_loaded(self, member: Member) -> None:
        member.has_text = True
        self._dirty()

    # What placements read.

    def candidates(self, digest: str, now: float) -> tuple[Candidate, ...]:
        """Workers of this model that can be sent legs; at most REFRESH_S old."""
        if now - self._built_at > REFRESH_S:
            self._build(now)
        return self._candidates.get(digest, ())

    def digests(self) -> tuple[str, ...]:
        return tuple(self._candidates)

    def _dirty(self) -> None:
        self._built_at = float("-inf")
        self.on_change()

    def _build(self, now: float) -> None:
        self._built_at = now
        verdict = classify(
            {m.slot: m.heard_at for m in self.members.values()},
            now,
            self._stale_after_s,
            self._panic_threshold,
        )
        self.fresh, self.panic = verdict.fresh, verdict.panic
        if self._unpooled and now - self._pooled_at >= POOL_S:
            self._pooled, self._pooled_at, self._unpooled = pool(m.cost for m in self.members.values() if m.cost), now, False
        out: dict[str, list[Candidate]] = {}
        for member in self.members.values():
            if not member.attached or not member.has_text:
                continue
            part = share(self._health[member.slot], now, self.ejection) if member.slot in self._health else 1.0
            out.setdefault(member.hello.model_digest, []).append(self._candidate(member, part))
        self._candidates = {digest: tuple(members) for digest, members in out.items()}

    def _candidate(self, member: Member, part: float) -> Candidate:
        """Made anew only where something of it has changed. `part`: of its sequences, what its health allows; 0 is ejected."""
        hello, pooled = member.hello, self._pooled.get(member.hello.shape, PRIORS)
        made_of = (hello, member.cost, pooled, member.slot in self.fresh, member.draining, part)
        if member.candidate is None or member.made_of != made_of:
            member.candidate, member.made_of = self._make(member, pooled, part), made_of
        return member.candidate

    def _make(self, member: Member, pooled: tuple[StepCost, TransferCost], part: float) -> Candidate:
        hello = member.hello
        step, transfer = settle(member.cost, pooled)
        return Candidate(
            slot=member.slot,
            role=ROLES.get(hello.role, "both"),
            fresh=member.slot in self.fresh and part > 0.0,
            draining=bool(member.draining),
            block_size=hello.capacity.block_size,
            kv_compat=hello.kv_compat,
            model_digest=hello.model_digest,
            max_model_len=hello.capacity.max_model_len,
            step=step,
            transfer=transfer,
            max_running=max(1, int((hello.capacity.max_running or 256) * part)),
            max_batched_tokens=hello.capacity.max_batched_tokens or 2048,
            kv_blocks=hello.capacity.kv_blocks or 1 << 30,
        )

    # What people read.

    def state(self, member: Member, now: float) -> str:
        """ready, stale, ejected or draining; stale also while it cannot be sent anything."""
        if member.draining:
            return "draining"
        if member.slot in self._health and now < self._health[member.slot].until:
            return "ejected"
        ready = member.attached and member.has_text and now - member.heard_at <= self._stale_after_s
        return "ready" if ready else "stale"

    def count(self, now: float) -> Iterable[tuple[tuple[str, str, str], float]]:
        counts: dict[tuple[str, str, str], float] = {}
        for member in self.members.values():
            labels = (member.hello.pool, member.hello.role, self.state(member, now))
            counts[labels] = counts.get(labels, 0) + 1
        return counts.items()
