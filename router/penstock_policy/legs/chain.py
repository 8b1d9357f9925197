"""The values of the legs machine: the chain's state, what happens to it, and what it asks for.

A chain is one choice of one request. It holds counts; token ids and text live at the edge.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

from penstock_policy.pick.decision import Placement

LegKind = Literal["whole", "prefill", "decode", "resume", "handoff"]
Fault = Literal["caller", "worker", "transfer", "refused"]
Status = Literal["unavailable", "aborted", "invalid_argument"]
LEASE_MARGIN_S = 1.0


class Finish(IntEnum):
    """The values of penstock.v1.FinishReason."""

    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4
    LEG_END = 5


@dataclass(frozen=True, slots=True, eq=False)
class KvRef:
    """KV that a worker holds for us. Two are the same only if they are one object: each may be used once."""

    slot: int
    num_tokens: int
    expires_at: float  # on the caller's clock: when the leg's end arrived + lease
    source: object = None  # the edge's KvSource


class LegSpec(NamedTuple):
    """A leg to start: prompt and everything emitted so far, on this worker."""

    leg_id: int
    slot: int
    kind: LegKind
    max_leg_tokens: int  # 0: to the answer's end
    kv: KvRef | None
    hold: int  # the ledger's booking for it


class LegRef(NamedTuple):
    leg_id: int
    slot: int
    kind: LegKind
    kv: KvRef | None
    hold: int
    emitted_before: int


class Chain(NamedTuple):
    """One choice. `leg` is the one whose outputs count; outputs of any other leg id are dropped.

    A tuple, like LegSpec and LegRef: half a dozen are made per request, at a quarter of a frozen dataclass's cost.
    """

    prompt_len: int
    max_tokens: int
    lease_margin_s: float = LEASE_MARGIN_S
    emitted: int = 0
    chars_sent: int = 0
    phase: Literal["placing", "running", "done"] = "placing"
    leg: LegRef | None = None
    placement: Placement | None = None
    holds: frozenset[int] = frozenset()  # bookings not yet released
    attempts: int = 0  # placements tried
    losses: int = 0  # legs that a worker failed or died under
    exclude: frozenset[int] = frozenset()  # workers that failed this request
    lost: frozenset[int] = frozenset()  # workers that died since the placement
    avoid: frozenset[int] = frozenset()  # workers that drain: nothing new starts there
    kv: KvRef | None = None  # of the leg that ended, while the next one is being placed
    moving: Placement | None = None  # booked for the next leg: the running one was told to hand off

    def accepts(self, leg_id: int) -> bool:
        """Whether outputs of this leg go to the client."""
        return self.leg is not None and self.leg.leg_id == leg_id

    def counts_on(self, slot: int) -> bool:
        """Whether this worker is to run a next leg, or holds KV that one needs."""
        if self.kv is not None and self.kv.slot == slot:
            return True
        if self.leg is None or self.placement is None or self.phase != "running":
            return False
        if self.moving is not None and self.moving.slot == slot:
            return True
        if self.leg.kv is not None and self.leg.kv.slot == slot:
            return True
        return self.leg.slot == slot or (self.leg.kind == "prefill" and self.placement.slot == slot)


# -- events


@dataclass(frozen=True, slots=True)
class Placed:
    """Answers Pick. A placement that nobody waits for any more is released."""

    placement: Placement


@dataclass(frozen=True, slots=True)
class Unplaced:
    """Answers Pick: nobody can run it, and the edge waits no longer."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class LegEnded:
    leg_id: int
    finish: Finish
    kv: KvRef | None = None


@dataclass(frozen=True, slots=True)
class LegFailed:
    leg_id: int
    fault: Fault
    message: str = ""
    field: str = ""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The worker, or the engine behind it, is gone with every leg on it."""

    slot: int


@dataclass(frozen=True, slots=True)
class ClientGone:
    """Cancelled, disconnected or past its deadline: the answer is not wanted any more."""


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """Nothing new may start there. What runs there goes on until a Move."""

    slot: int


@dataclass(frozen=True, slots=True)
class Move:
    """Hand the running leg off to this worker, which is booked. Where that makes no sense (the leg has ended, is a
    prefill or moves already) the booking is released."""

    placement: Placement


@dataclass(frozen=True, slots=True)
class LegStalled:
    """A leg that is to pull KV has said nothing for too long: no engine bounds the time of a pull."""

    leg_id: int


Event = Placed | Unplaced | LegEnded | LegFailed | WorkerLost | ClientGone | WorkerDraining | Move | LegStalled

# -- actions, to be done in order


@dataclass(frozen=True, slots=True)
class Pick:
    """Place it (again) and answer with Placed or Unplaced."""

    exclude: frozenset[int]
    why: str
    spends: bool  # take one from the retry budget
    delay_s: float = 0.0  # not before so long from now


@dataclass(frozen=True, slots=True)
class Start:
    leg: LegSpec


@dataclass(frozen=True, slots=True)
class Abort:
    slot: int
    leg_id: int


@dataclass(frozen=True, slots=True)
class HandOff:
    """End this running leg at its next token, its KV held."""

    slot: int
    leg_id: int


@dataclass(frozen=True, slots=True)
class RejectKv:
    """To the worker that holds it; one that was pulled meanwhile ignores it."""

    slot: int
    kv: KvRef


@dataclass(frozen=True, slots=True)
class Release:
    """Give the booking back to the ledger. Comes exactly once for every hold of every placement."""

    hold: int


@dataclass(frozen=True, slots=True)
class Finished:
    reason: Finish  # STOP or LENGTH


@dataclass(frozen=True, slots=True)
class Fail:
    status: Status
    reason: str  # a closed set: see machine.py
    message: str
    field: str = ""


Action = Pick | Start | Abort | HandOff | RejectKv | Release | Finished | Fail
