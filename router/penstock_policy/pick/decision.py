"""What `place` is asked and what it answers. Slots are the router's small ints for workers.

Tuples where one is made per request: a frozen dataclass costs several times as much to make.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal, NamedTuple

from penstock_policy.cost.model import PRIOR, TRANSFER_PRIOR, StepCost, TransferCost

Role = Literal["prefill", "decode", "both"]
Prefer = Literal["auto", "disaggregated", "colocated"]
Kind = Literal["colocated", "disaggregated"]


_NOWHERE: Mapping[int, int] = MappingProxyType({})


class PickRequest(NamedTuple):
    prompt_tokens: int  # of the leg: prompt and tokens already emitted
    max_tokens: int  # still to come at most
    matched: Mapping[int, int] = _NOWHERE  # slot -> leading blocks cached there
    ttft_slo_s: float = float("inf")
    tpot_slo_s: float = float("inf")
    exclude: frozenset[int] = frozenset()
    prefer: Prefer = "auto"
    model_digest: str = ""  # only workers of this digest; empty: any


class Candidate(NamedTuple):
    slot: int
    role: Role = "both"
    fresh: bool = True
    draining: bool = False
    block_size: int = 16
    kv_compat: str = ""
    model_digest: str = ""
    max_model_len: int = 1 << 30
    step: StepCost = PRIOR
    transfer: TransferCost = TRANSFER_PRIOR
    max_running: int = 256
    max_batched_tokens: int = 2048
    kv_blocks: int = 1 << 30


class Reason(StrEnum):
    """Why a placement won."""

    ONLY = "only"  # nothing else could run it
    LEAST_COST = "least_cost"  # least predicted time, all considered
    SLO = "slo"  # something cheaper would miss the objectives
    PREFERRED = "preferred"  # the service's topology asks for this kind


class NoWorkerReason(StrEnum):
    """From the farthest to the nearest to being able to run it."""

    NONE_JOINED = "none_joined"
    OTHER_MODEL = "other_model"
    NONE_READY = "none_ready"  # stale or draining
    CONTEXT_TOO_SMALL = "context_too_small"
    NONE_LEFT = "none_left"  # every ready one has failed this request


@dataclass(frozen=True, slots=True)
class Rejected:
    """The best placement of the other kind."""

    prefill_slot: int | None
    slot: int
    ttft_s: float
    tpot_s: float


class Placement(NamedTuple):
    """A placement that is booked. `hold` is the booking of the worker that decodes (or runs it whole)."""

    kind: Kind
    slot: int
    prefill_slot: int | None
    ttft_s: float
    tpot_s: float
    reason: Reason
    considered: int
    hold: int = 0
    prefill_hold: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # where the prompt is computed
    transfer_tokens: int = 0
    rejected: Rejected | None = None

    def explain(self, name: Callable[[int], str] = str) -> str:
        """In words: `pair w1->w2: ttft 12.1 ms vs alone w2 15.0 ms; 96 of 128 tokens cached`."""
        text = f"{_where(self.prefill_slot, self.slot, name)}: ttft {self.ttft_s * 1e3:.1f} ms"
        text += f", tpot {self.tpot_s * 1e3:.1f} ms"
        if self.rejected is not None:
            other = self.rejected
            text += f" vs {_where(other.prefill_slot, other.slot, name)} ttft {other.ttft_s * 1e3:.1f} ms"
            text += f", tpot {other.tpot_s * 1e3:.1f} ms"
        text += f"; {self.cached_tokens} of {self.prompt_tokens} tokens cached"
        if self.prefill_slot is not None:
            text += f", {self.transfer_tokens} to transfer"
        return text + _BECAUSE[self.reason]


@dataclass(frozen=True, slots=True)
class NoWorker:
    reason: NoWorkerReason
    considered: int = 0

    def explain(self, name: Callable[[int], str] = str) -> str:
        return f"no worker of {self.considered}: {self.reason.value.replace('_', ' ')}"


Decision = Placement | NoWorker

_BECAUSE = {
    Reason.ONLY: " (nothing else can run it)",
    Reason.LEAST_COST: "",
    Reason.SLO: " (cheaper ones would miss the objectives)",
    Reason.PREFERRED: " (the topology asks for it)",
}


def _where(prefill_slot: int | None, slot: int, name: Callable[[int], str]) -> str:
    return f"alone {name(slot)}" if prefill_slot is None else f"pair {name(prefill_slot)}->{name(slot)}"
