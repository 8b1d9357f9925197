"""One of an answer's n choices: runs its chain of legs.

Promise: `penstock_policy.legs` decides and this module does what it says, in one synchronous step per event. Token ids
live here: the prompt's as they go to workers, the emitted ones in one append-only array.
"""

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from penstock_policy.legs import machine as legs
from penstock_proto.v1.common_pb2 import Sampling, TokenLogprob
from penstock_proto.v1.inference_pb2 import LegPlacement, Placement, Usage
from penstock_proto.v1.worker_pb2 import LegError, LegOutput

from .answer import Answer, Delta
from .serve.grpc_bytes import text_and_ids
from .text.chunks import Encoded

if TYPE_CHECKING:
    from .dispatch import Dispatcher
    from .feed.models import Model

FAULTS: Final[dict[int, legs.Fault]] = {
    LegError.FAULT_UNSPECIFIED: "worker",
    LegError.CALLER: "caller",
    LegError.WORKER: "worker",
    LegError.TRANSFER: "transfer",
    LegError.REFUSED: "refused",
}


PULLING: Final = ("decode", "handoff")


@dataclass(slots=True, eq=False)
class LegRecord:
    """A leg that was started, for usage, metrics and explanations."""

    leg_id: int
    kind: legs.LegKind
    worker: str
    pool: str
    hold: int
    emitted_before: int
    started: bool = False  # its first output has come
    outcome: str = ""
    cached: int = 0
    transferred: int = 0
    computed: int = 0
    generated: int = 0


class Choice:
    """Hears of its legs from the attachments, and of everything else from the dispatcher."""

    __slots__ = (
        "_logprobs",
        "_text",
        "_usage",
        "answer",
        "chain",
        "chars_sent",
        "core",
        "dirty",
        "emitted",
        "exclude",
        "finish",
        "first_at",
        "held_until",
        "ids",
        "index",
        "keys",
        "last_at",
        "leg",
        "model",
        "moving_why",
        "owes",
        "prompt",
        "prompt_len",
        "records",
        "sampling",
        "sent",
        "stop_reason",
        "unreported",
        "wants_logprobs",
    )  # fmt: skip

    def __init__(
        self,
        core: "Dispatcher",
        answer: Answer,
        index: int,
        model: "Model",
        encoded: Encoded,
        sampling: Sampling,
    ) -> None:
        self.core = core
        self.answer = answer
        self.index = index
        self.model = model
        self.prompt = encoded.ids
        self.keys = encoded.keys  # of the prompt's whole blocks
        self.exclude: frozenset[int] = frozenset()
        self.ids = array("I")  # emitted
        self.prompt_len = encoded.n
        self.sampling = sampling
        self.chain, self.records = legs.Chain(encoded.n, sampling.max_tokens), list[LegRecord]()
        self.leg: LegRecord | None = None
        self.emitted = self.unreported = self.chars_sent = 0
        self.sent = 0  # how many of ids the client has
        self.finish = 0
        self.stop_reason = ""
        self.dirty = False
        self.first_at = self.last_at = 0.0
        self.held_until = 0.0
        self.owes = False  # its next placement takes one from the retry budget, which was empty
        self.moving_why = ""  # why its running leg was told to hand off
        self.wants_logprobs = sampling.HasField("logprobs")
        self._text = ""
        self._usage: Usage | None = None
        self._logprobs: list[TokenLogprob] = []

    def begin(self, lease_margin_s: float) -> None:
        self.chain, actions = legs.open_chain(self.prompt_len, self.sampling.max_tokens, lease_margin_s)
        self.act(actions)

    # A leg's news.

    def output(self, output: LegOutput) -> None:
        leg = self.leg
        if leg is None or leg.leg_id != output.leg_id:
            return
        if not leg.started:
            self._first_output(leg, output)
        data = output.token_ids
        if data:
            self.ids.frombytes(data)
            count = len(data) >> 2
            if not self.emitted:
                self.core.first_token(self)
            self.emitted += count
            self.unreported += count
            self.last_at = self.core.now()
            text = output.text
            if text:
                self._text += text
                self.chars_sent = output.chars_sent
            if self.wants_logprobs:
                self._logprobs.extend(output.logprobs)
            if not self.dirty:
                self.dirty = True
                self.answer.wake()
        elif output.text:
            self._text += output.text
            self.chars_sent = output.chars_sent
            self.dirty = True
            self.answer.wake()
        if output.finish_reason:
            self._leg_ended(leg, output)

    def lost(self, reason: str) -> None:
        leg = self.leg
        if leg is None:
            return
        leg.outcome = "lost"
        self.core.log_leg(self, leg, reason)
        self.moving_why = ""
        self._end_leg(leg)
        assert self.chain.leg is not None
        self.step(legs.WorkerLost(self.chain.leg.slot))

    def _first_output(self, leg: LegRecord, output: LegOutput) -> None:
        leg.started = True
        if leg.kind in PULLING:
            self.core.moves.pulls.pop(leg.leg_id, None)
        if leg.emitted_before:
            self.core.moves.arrived(self)
        self.core.fleet.ledger.started(leg.hold)
        if output.HasField("context"):
            context = output.context
            leg.cached, leg.transferred, leg.computed = context.cached_tokens, context.transferred_tokens, context.computed_tokens

    def _leg_ended(self, leg: LegRecord, output: LegOutput) -> None:
        finish = legs.Finish(output.finish_reason)
        event: legs.Event
        if finish is legs.Finish.ERROR and output.error.fault == LegError.GONE:
            self.lost(output.error.message)
            return
        if finish is legs.Finish.ERROR:
            error = output.error
            fault = FAULTS.get(error.fault, "worker")
            leg.outcome = f"error_{fault}"
            self.core.log_leg(self, leg, error.message)
            if fault == "worker" and self.chain.leg is not None:
                self.core.worker_failed(self.chain.leg.slot, error.message)
            event = legs.LegFailed(leg.leg_id, fault, error.message, error.field)
        else:
            leg.outcome = finish.name.lower()
            if self.chain.leg is not None:
                self.core.fleet.succeeded(self.chain.leg.slot, self.core.now())
            kv = None
            if output.HasField("kv") and self.chain.leg is not None:
                expires_at = self.core.now() + output.kv.lease_ms / 1000
                kv = legs.KvRef(self.chain.leg.slot, output.kv.num_tokens, expires_at, output.kv)
            self.stop_reason = output.stop_reason
            event = legs.LegEnded(leg.leg_id, finish, kv)
        self._end_leg(leg)
        self.step(event)

    def _end_leg(self, leg: LegRecord) -> None:
        leg.generated = self.emitted - leg.emitted_before
        if not leg.started and leg.kind in PULLING:
            self.core.moves.pulls.pop(leg.leg_id, None)
        self.core.leg_outcome(leg.kind, leg.outcome)
        self.leg = None

    # The machine.

    def step(self, event: legs.Event) -> None:
        try:
            self._step(event)
        except Exception:  # noqa: BLE001 - a defect of ours ends its own request, whoever brought the event
            self.core.defect(self.answer)

    def _step(self, event: legs.Event) -> None:
        chain, core = self.chain, self.core
        if self.unreported and chain.leg is not None:
            chain = legs.progress(chain, chain.leg.leg_id, self.unreported, self.chars_sent)
            self.unreported = 0
        self.chain, actions = legs.step(chain, event, core.now(), core.last_leg_id + 1, core.budget.allows())
        self.act(actions)

    def act(self, actions: tuple[legs.Action, ...]) -> None:
        core = self.core
        for action in actions:
            if isinstance(action, legs.Release):
                core.fleet.ledger.release(action.hold)
            elif isinstance(action, legs.Start):
                self._start(action.leg)
            elif isinstance(action, legs.Pick):
                core.pick(self, action)
            elif isinstance(action, legs.Finished):
                self._finish(int(action.reason))
            elif isinstance(action, legs.Abort):
                if self.leg is not None and self.leg.leg_id == action.leg_id:
                    self.leg.outcome = "superseded"
                    self._end_leg(self.leg)
                core.abort(action.slot, action.leg_id)
            elif isinstance(action, legs.HandOff):
                core.hand_off(action.slot, action.leg_id)
            elif isinstance(action, legs.RejectKv):
                core.reject_kv(self, action.slot, action.kv)
            else:
                core.failed(self, action)

    def _start(self, spec: legs.LegSpec) -> None:
        hello = self.core.fleet.members[spec.slot].hello if spec.slot in self.core.fleet.members else None
        worker, pool = (hello.worker_id, hello.pool) if hello is not None else ("", "")
        self.leg = LegRecord(spec.leg_id, spec.kind, worker, pool, spec.hold, self.emitted)
        self.records.append(self.leg)
        if self.moving_why:
            self.core.moved(self, "pulled" if spec.kv is not None else "recomputed")
        self.core.start(self, spec)

    def _finish(self, reason: int) -> None:
        self.finish = reason
        self.dirty = True
        answer = self.answer
        if self.moving_why:
            self.core.moved(self, "ended_first")
        self.core.figures.choice_finished(self)
        answer.open_choices -= 1
        if not answer.open_choices:
            answer.end("completed")
        answer.wake()

    def cancel(self) -> None:
        """Nobody wants it any more. Its leg hears so at once."""
        self.core.unhold(self)
        leg = self.leg
        if leg is not None:
            leg.outcome = "cancelled"
            self._end_leg(leg)
        self.step(legs.ClientGone())

    # What the client gets.

    def take_bytes(self) -> bytes:
        """As `take`, as a serialized GenerateResponse."""
        if self.finish or self.index or self._logprobs:
            return self.take().message().SerializeToString()
        self.dirty = False
        text, self._text = self._text, ""
        sent, self.sent = self.sent, len(self.ids)
        return text_and_ids(text, self.ids[sent:])

    def take(self) -> Delta:
        self.dirty = False
        text, self._text = self._text, ""
        sent, self.sent = self.sent, len(self.ids)
        delta = Delta(self.index, text, self.ids[sent:].tolist())
        if self._logprobs:
            delta.logprobs, self._logprobs = self._logprobs, []
        if self.finish:
            delta.finish_reason = self.finish
            delta.stop_reason = self.stop_reason
            delta.usage = self.usage()
            if self.answer.request.explain:
                delta.placement = self.placement()
        return delta

    def usage(self) -> Usage:
        """Once the choice has ended it is made once."""
        if self._usage is not None:
            return self._usage
        usage = self._count_usage()
        if self.finish:
            self._usage = usage
        return usage

    def _count_usage(self) -> Usage:
        """Each prompt token is counted where its KV came from: the first worker's cache, else a transfer, else a prefill."""
        first = next((r for r in self.records if r.started), None)
        last = self.records[-1] if self.records else None
        cached = min(first.cached, self.prompt_len) if first is not None else 0
        moved = sum(r.transferred for r in self.records if r.kind == "decode" and (r is last or r.started))
        transferred = min(moved, self.prompt_len - cached)
        return Usage(
            prompt_tokens=self.prompt_len,
            cached_tokens=cached,
            transferred_tokens=transferred,
            computed_tokens=self.prompt_len - cached - transferred,
            completion_tokens=self.emitted,
        )

    @property
    def tpot_s(self) -> float | None:
        if self.emitted < 2 or not self.first_at:
            return None
        return (self.last_at - self.first_at) / (self.emitted - 1)

    def placement(self) -> Placement:
        placed = self.chain.placement
        out = Placement(ttft_s=max(0.0, self.first_at - self.answer.received_at), tpot_s=self.tpot_s or 0.0)
        if placed is not None:
            out.kind, out.candidates = placed.kind, placed.considered
            out.predicted_ttft_s, out.predicted_tpot_s = placed.ttft_s, placed.tpot_s
            out.reason = placed.explain(self.core.worker_name)
        for record in self.records:
            out.legs.append(
                LegPlacement(
                    kind=record.kind,
                    worker=record.worker,
                    pool=record.pool,
                    cached_tokens=record.cached,
                    transferred_tokens=record.transferred,
                    computed_tokens=record.computed,
                    generated_tokens=record.generated,
                    outcome=record.outcome,
                )
            )
        return out
