"""The router's core: turns requests into answers.

Promise: between reading the fleet's state and booking a placement nothing is awaited; whatever way an answer ends, its
legs are aborted or ended, its KV given back, its bookings released and its figures counted, once.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from penstock_policy.legs import machine as legs
from penstock_policy.pick.decision import PickRequest, Placement
from penstock_policy.pick.pick import place
from penstock_proto.v1.inference_pb2 import ModelCard, StatusResponse
from penstock_proto.v1.worker_pb2 import KvSource, StartLeg

from .answer import Answer, Opened
from .choice import Choice, LegRecord
from .config import RouterConfig
from .faults import Broken, CallerFault, Expired, Fault, Internal, Shed, Unavailable, UnknownModel
from .feed.attach import Attachment, start_command
from .feed.fleet import Fleet, Member
from .feed.models import Model, Models
from .figures import Figures
from .hold import Held
from .log import RequestLog, event
from .metrics import RouterMetrics
from .moves import Moves
from .request import Request, check_against_model, sampling_of_choice
from .request_ids import RequestIds, mark_of
from .text.chunks import Encoded
from .view import register_gauges, status_of

log = logging.getLogger("penstock.dispatch")
RETRY_AFTER_S: Final = 1.0
PAY_WITHIN_S: Final = 1.0  # how long a begun stream waits for the retry budget


class Dispatcher:
    """What the fronts call. `fleet`, `models` and `links` are the feed's."""

    def __init__(
        self,
        config: RouterConfig,
        fleet: Fleet,
        models: Models,
        metrics: RouterMetrics,
        *,
        clock: Callable[[], float] | None = None,
        request_log: RequestLog | None = None,
    ) -> None:
        self.config = config
        self.fleet = fleet
        self.model_store = models
        self.metrics = metrics
        self.now = clock or time.monotonic  # the loop's time, at its full resolution
        self.links: dict[int, Attachment] = {}  # by slot
        self.budget = legs.RetryBudget()
        self.last_leg_id = 0
        self.open_answers: set[Answer] = set()
        self.held = Held(self)
        self.ids = RequestIds()
        self.moves = Moves(self)
        self.figures = Figures(config, metrics, request_log or RequestLog(enabled=False))
        self.started_at = self.now()
        self.draining = False
        self._awake: list[Answer] = []
        self._decisions = metrics.decision.child()
        register_gauges(self)

    # Fronts.

    def answer(self, request: Request, deadline: float | None) -> Opened:
        """`async with dispatcher.answer(request, deadline) as answer`. The deadline is in the loop's time."""
        return Opened(self, request, deadline)

    async def open(self, request: Request, deadline: float | None) -> Answer:
        """Tokenized, checked and placed, or waiting for a worker. Raises a Fault."""
        received_at = self.now()
        named = False
        try:
            if request.identity:
                self.ids.open(request.identity, received_at, retry=request.retry, field=request.identity_field)
                named = True
            answer = await self._open(request, deadline, received_at)
        except Fault as fault:
            self.refused(fault, request)
            self._unname(request, named)
            raise
        except asyncio.CancelledError:
            self._refused("cancelled", request)
            self._unname(request, named)
            raise
        except Exception:
            self._refused("internal_error", request)
            self._unname(request, named)
            raise
        try:
            for choice in answer.choices:
                choice.begin(self.config.lease_margin_s)
        except Exception:  # noqa: BLE001 - whatever it is, nothing of the request stays behind
            self.defect(answer)
        return answer

    def _unname(self, request: Request, named: bool) -> None:
        if named:
            self.ids.closed(request.identity, self.now(), began=False)

    def defect(self, answer: Answer) -> None:
        """To be called where an exception was caught: the request ends at once, its caller gets its id to ask about."""
        log.exception("request failed", extra={"fields": {"request_id": answer.request_id}})
        answer.fail(Internal(answer.request_id))

    async def _open(self, request: Request, deadline: float | None, received_at: float) -> Answer:
        if self.draining:
            raise Unavailable("the router is shutting down")
        if len(self.open_answers) >= self.config.limits.max_open_requests:
            raise Shed("too many open requests", RETRY_AFTER_S)
        if deadline is not None and deadline <= received_at:
            raise Expired
        hold_until = received_at + self.config.hold_s
        model = self._model(request)
        while model is None:
            await self.held.until_change(request, hold_until, deadline)
            model = self._model(request)
        encoded = model.open(request)
        if not isinstance(encoded, Encoded):
            encoded = await model.encode(request, encoded)
        sampling = check_against_model(request, encoded.n, model)
        answer = Answer(request, model.name, time.time(), received_at, self._wake)
        answer.prompt_tokens = encoded.n
        answer.settle = self._settle
        self.open_answers.add(answer)
        self.budget = self.budget.opened()
        if deadline is not None:
            loop = asyncio.get_running_loop()
            answer.deadline_timer = loop.call_at(deadline, answer.fail, Expired())
        answer.open_choices = request.n
        for index in range(request.n):
            choice = Choice(self, answer, index, model, encoded, sampling_of_choice(sampling, index))
            choice.held_until = hold_until if deadline is None else min(hold_until, deadline)
            answer.choices.append(choice)
        return answer

    def refused(self, fault: Fault, request: Request | None = None) -> None:
        """A request that got no Answer."""
        self.metrics.dropped.child(fault.code).value += 1
        self._refused(fault.code, request)

    def _refused(self, outcome: str, request: Request | None) -> None:
        if request is None:
            self.figures.refused("", "", "", outcome)
            return
        # The name is the client's until a model of that name is known: no label before that.
        known = request.model == self.config.model or self.model_store.by_name(request.model) is not None
        self.figures.refused(request.request_id, request.model if known else "", request.service_class, outcome)

    def models(self) -> list[ModelCard]:
        return [
            ModelCard(name=m.name, max_model_len=m.max_model_len, created_s=int(m.created_s)) for m in self.model_store.served()
        ]

    def ready(self) -> bool:
        if self.draining:
            return False
        return any(m.attached for m in self.fleet.members.values()) or (self.now() - self.started_at >= self.config.ready_after_s)

    def status(self) -> StatusResponse:
        return status_of(self)

    def _model(self, request: Request) -> Model | None:
        """The model a request means, once it can be served; None: wait."""
        served = self.model_store.served()
        if request.model:
            found = self.model_store.by_name(request.model)
            if found is None and served and request.model != self.config.model:
                raise UnknownModel(request.model[:128])
            return found
        if len(served) > 1:
            raise CallerFault("model", f"must be one of: {', '.join(sorted(m.name for m in served))}")
        return served[0] if served else None

    # What a choice's machine asks for.

    def pick(self, choice: Choice, action: legs.Pick) -> None:
        if action.why != "new":
            if action.why != "handoff":
                self.metrics.failovers.child(action.why).value += 1
            if choice.chain.emitted:
                choice.held_until = self.now() + self.config.hold_s
        choice.exclude = action.exclude
        choice.owes = action.spends
        if action.delay_s:
            asyncio.get_running_loop().call_later(_spread(action.delay_s, self.last_leg_id), self._place_later, choice)
        else:
            self.place(choice)

    def _place_later(self, choice: Choice) -> None:
        if choice.chain.phase == "placing" and not choice.answer.over:
            self.place(choice)

    def place(self, choice: Choice) -> None:
        """Match, predict, book and start in one step; where nobody can run it, it waits."""
        try:
            self._place(choice)
        except Exception:  # noqa: BLE001 - called from timers as well: the request must not be left waiting for nothing
            self.defect(choice.answer)

    def _place(self, choice: Choice) -> None:
        if choice.owes and not self._pay(choice):
            return
        began = time.perf_counter()
        chain, model, figures = choice.chain, choice.model, self.figures.classes[choice.answer.service_class]
        matched = self.fleet.index.match(choice.keys) if len(choice.keys) else {}
        request = PickRequest(
            prompt_tokens=chain.prompt_len + chain.emitted,
            max_tokens=chain.max_tokens - chain.emitted,
            matched=matched,
            ttft_slo_s=figures.service_class.ttft_s,
            tpot_slo_s=figures.service_class.tpot_s,
            exclude=choice.exclude,
            prefer="colocated" if chain.emitted else self.config.topology_mode,
        )
        now = self.now()
        decision = place(request, self.fleet.candidates(model.digest, now), self.fleet.ledger, now)
        self._decisions.observe(time.perf_counter() - began)
        if isinstance(decision, Placement):
            choice.step(legs.Placed(decision))
        elif not self.held.hold(choice):
            choice.step(legs.Unplaced("no_worker", decision.explain()))

    def _pay(self, choice: Choice) -> bool:
        """Takes one from the retry budget. A begun stream waits for it; the machine has failed others already.

        It waits a moment only: where every stream waits for the budget, none opens that would pay in.
        """
        if self.budget.allows():
            self.budget = self.budget.spent()
            choice.owes = False
            return True
        hold_s = self.config.hold_s
        if choice.chain.emitted and self.now() >= choice.held_until - hold_s + min(PAY_WITHIN_S, hold_s / 2):
            choice.owes = False
            return True
        if not self.held.hold(choice):
            choice.step(legs.Unplaced("retries_exhausted", "too many requests are being tried again"))
        return False

    def start(self, choice: Choice, spec: legs.LegSpec) -> None:
        self.last_leg_id = spec.leg_id
        command = StartLeg(
            leg_id=spec.leg_id,
            request_id=choice.answer.request_id,
            token_ids=choice.prompt + choice.ids.tobytes() if choice.emitted else choice.prompt,
            emitted=choice.emitted,
            chars_sent=choice.chars_sent,
            max_leg_tokens=spec.max_leg_tokens,
            priority=self.figures.classes[choice.answer.service_class].priority,
            request_mark=mark_of(choice.answer.request.identity),
        )
        if spec.kv is not None and isinstance(spec.kv.source, KvSource):
            command.kv.CopyFrom(spec.kv.source)
            command.kv.lease_ms = max(0, int((spec.kv.expires_at - self.now()) * 1000))
            self.moves.pulls[spec.leg_id] = (choice, self.now())
        self.fleet.ledger.sent(spec.hold, spec.slot, spec.leg_id)
        link = self.links.get(spec.slot)
        if link is None:
            asyncio.get_running_loop().call_soon(self._lose_unstarted, choice, spec.leg_id)
        else:
            link.start(spec.leg_id, start_command(command, choice.sampling.SerializeToString()), choice)

    def _lose_unstarted(self, choice: Choice, leg_id: int) -> None:
        if choice.leg is not None and choice.leg.leg_id == leg_id:
            choice.lost("the worker left before the leg began")

    def abort(self, slot: int, leg_id: int) -> None:
        link = self.links.get(slot)
        if link is not None:
            link.abort(leg_id)

    def hand_off(self, slot: int, leg_id: int) -> None:
        link = self.links.get(slot)
        if link is not None:
            link.hand_off(leg_id)

    def moved(self, choice: Choice, outcome: str) -> None:
        self.metrics.handoffs.child(choice.moving_why, outcome).value += 1
        choice.moving_why = ""

    def worker_failed(self, slot: int, reason: str) -> None:
        if self.fleet.failed(slot, self.now()):
            event(log, "worker ejected", logging.WARNING, worker=self.worker_name(slot), reason=reason[:300])

    def reject_kv(self, choice: Choice, slot: int, kv: legs.KvRef) -> None:
        link, source = self.links.get(slot), kv.source
        if not isinstance(source, KvSource):
            return
        if self.now() >= kv.expires_at - self.config.lease_margin_s:
            self.metrics.kv_expired.child().value += 1
        if link is not None and link.member.hello.incarnation == source.incarnation:
            link.reject_kv(source)

    def failed(self, choice: Choice, action: legs.Fail) -> None:
        answer = choice.answer
        fault: Fault
        if action.status == "invalid_argument":
            fault = CallerFault(action.field, action.message or "refused by the worker")
        elif action.status == "aborted":
            fault = Broken(f"{action.reason}: {action.message}" if action.message else action.reason)
        else:
            fault = Unavailable(f"{action.reason}: {action.message}" if action.message else action.reason, RETRY_AFTER_S)
        if any(other.emitted for other in answer.choices) and isinstance(fault, Unavailable):
            fault = Broken(fault.message)  # another choice's tokens are out: asking again is not safe
        answer.fail(fault)

    def log_leg(self, choice: Choice, leg: LegRecord, reason: str) -> None:
        event(
            log, "leg failed", logging.WARNING, request_id=choice.answer.request_id, leg_id=leg.leg_id, kind=leg.kind,
            worker=leg.worker, outcome=leg.outcome, reason=reason[:300], emitted=choice.emitted,
        )  # fmt: skip

    def leg_outcome(self, kind: str, outcome: str) -> None:
        self.metrics.legs.child(kind, outcome).value += 1

    def unhold(self, choice: Choice) -> None:
        self.held.drop(choice)

    def worker_name(self, slot: int) -> str:
        member = self.fleet.members.get(slot)
        return member.name if member is not None else f"slot {slot}"

    # The feed.

    def fleet_changed(self) -> None:
        self.held.fleet_changed()

    def member_gone(self, member: Member) -> None:
        """Whatever still counts on it hears so."""
        link = self.links.pop(member.slot, None)
        if link is not None:
            link.close("the worker is gone")
        self._lost(member.slot)

    def link_broken(self, member: Member, reason: str) -> None:
        """Its own legs have heard. Those that pull from it need not wait for the pull's timeout, and none moves to it."""
        if not member.gone and not member.draining:
            self.worker_failed(member.slot, reason)
        self._lost(member.slot)

    def _lost(self, slot: int) -> None:
        for answer in list(self.open_answers):
            for choice in answer.choices:
                if choice.chain.counts_on(slot):
                    choice.step(legs.WorkerLost(slot))

    def first_token(self, choice: Choice) -> None:
        choice.first_at = self.now()
        self.figures.first_token(choice, choice.first_at - choice.answer.received_at)

    def _settle(self, answer: Answer, outcome: str) -> None:
        self.open_answers.discard(answer)
        if answer.request.identity:
            began = any(choice.emitted for choice in answer.choices)
            self.ids.closed(answer.request.identity, self.now(), began=began)
        self.budget = self.budget.closed()
        self.figures.settle(answer, outcome, self.now())

    # Delivery.

    def _wake(self, answer: Answer) -> None:
        if not self._awake:
            asyncio.get_running_loop().call_soon(self._deliver)
        self._awake.append(answer)

    def _deliver(self) -> None:
        awake, self._awake = self._awake, []
        for answer in awake:
            try:
                answer.deliver()
            except Exception:
                log.exception("delivery failed", extra={"fields": {"request_id": answer.request_id}})
                answer.fail(Internal(answer.request_id))


def _spread(delay_s: float, seed: int) -> float:
    """Between 0.75 and 1.25 of the delay: what failed together does not come back together."""
    return delay_s * (0.75 + (seed * 2654435761 % 2**32) / 2**33)
