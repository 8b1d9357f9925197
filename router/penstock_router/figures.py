"""What is counted about requests: SLO attainment, tokens, latencies, one log line.

Promise: each request is counted once, under labels from configuration or from a worker's hello, never from a client.
"""

from typing import Final

from penstock_policy.slo.attainment import Targets, attained
from penstock_proto.v1.inference_pb2 import SloStatus

from .answer import Answer
from .choice import Choice
from .config import RouterConfig, ServiceClass
from .faults import Expired, Unavailable
from .log import RequestLog
from .metrics import RouterMetrics, Spread

OBJECTIVES: Final = ("ttft", "tpot")


class ClassFigures:
    """A service class with its counters bound."""

    __slots__ = ("attained", "judged", "priority", "service_class", "targets", "tpot", "ttft")

    def __init__(self, service_class: ServiceClass, metrics: RouterMetrics) -> None:
        name = service_class.name
        self.service_class = service_class
        self.targets = Targets(service_class.ttft_s, service_class.tpot_s)
        self.priority = -service_class.priority  # vLLM runs the lower first
        self.judged = {o: metrics.slo_judged.child(name, o) for o in OBJECTIVES}
        self.attained = {o: metrics.slo_attained.child(name, o) for o in OBJECTIVES}
        self.ttft: dict[tuple[str, str], Spread] = {}  # by model and placement
        self.tpot: dict[tuple[str, str], Spread] = {}

    def judge(self, objective: str, met: bool | None) -> None:
        if met is not None:
            self.judged[objective].value += 1
            self.attained[objective].value += met


class Figures:
    """Hears of every first token, finished choice and ended answer."""

    def __init__(self, config: RouterConfig, metrics: RouterMetrics, request_log: RequestLog) -> None:
        self.classes = {c.name: ClassFigures(c, metrics) for c in config.classes}
        self._metrics = metrics
        self._log = request_log
        self._prompts = metrics.request_prompt.child()
        self._outputs = metrics.request_output.child()
        self._sources = [metrics.prompt_tokens.child(s) for s in ("cached", "transferred", "computed")]
        self._over, self._under = metrics.ttft_error.child("over"), metrics.ttft_error.child("under")
        self._tenant = metrics.tenant_tokens.child("default")

    def first_token(self, choice: Choice, ttft_s: float) -> None:
        answer, placed = choice.answer, choice.chain.placement
        figures = self.classes[answer.service_class]
        kind = placed.kind if placed is not None else "colocated"
        spread = figures.ttft.get((answer.model, kind))
        if spread is None:
            spread = self._metrics.ttft.child(answer.model, answer.service_class, kind)
            figures.ttft[answer.model, kind] = spread
        spread.observe(ttft_s)
        if placed is not None:
            error = placed.ttft_s - ttft_s
            (self._over if error > 0 else self._under).observe(abs(error))
        figures.judge("ttft", attained(ttft_s, None, figures.targets).ttft)

    def choice_finished(self, choice: Choice) -> None:
        answer, placed, tpot_s = choice.answer, choice.chain.placement, choice.tpot_s
        if tpot_s is None:
            return
        figures = self.classes[answer.service_class]
        kind = placed.kind if placed is not None else "colocated"
        spread = figures.tpot.get((answer.model, kind))
        if spread is None:
            spread = self._metrics.tpot.child(answer.model, answer.service_class, kind)
            figures.tpot[answer.model, kind] = spread
        spread.observe(tpot_s)
        figures.judge("tpot", attained(None, tpot_s, figures.targets).tpot)

    def settle(self, answer: Answer, outcome: str, now: float) -> None:
        emitted = 0
        workers = []
        for choice in answer.choices:
            emitted += choice.emitted
            if choice.records:
                usage = choice.usage()
                tokens = (usage.cached_tokens, usage.transferred_tokens, usage.computed_tokens)
                for count, value in zip(self._sources, tokens, strict=True):
                    count.value += value
                workers += [record.worker for record in choice.records]
            if not choice.emitted and isinstance(answer.fault, Unavailable | Expired):
                self.classes[answer.service_class].judge("ttft", met=False)
        self._metrics.generated.value += emitted
        self._tenant.value += emitted + answer.prompt_tokens
        self._prompts.observe(answer.prompt_tokens)
        self._outputs.observe(emitted)
        self.count(answer.model, answer.service_class, outcome)
        if answer.fault is not None:
            self._metrics.dropped.child(answer.fault.code).value += 1
        if self._log.enabled:
            first = answer.choices[0].first_at if answer.choices else 0.0
            ttft = f"{first - answer.received_at:.6f}" if first else "null"
            ran = '", "'.join(workers)
            self._log.write(
                answer.request_id,
                outcome,
                f'"prompt_tokens": {answer.prompt_tokens}, "tokens": {emitted}, "ttft_s": {ttft}, '
                f'"total_s": {now - answer.received_at:.6f}, "workers": ["{ran}"]',
            )

    def count(self, model: str, service_class: str, outcome: str) -> None:
        self._metrics.requests.child(model, service_class, outcome).value += 1

    def refused(self, request_id: str, model: str, service_class: str, outcome: str) -> None:
        """A request that got no Answer."""
        self.count(model, service_class, outcome)
        if request_id:
            self._log.write(request_id, outcome, '"tokens": 0')

    def slo(self) -> list[SloStatus]:
        return [
            SloStatus(
                service_class=name,
                objective=objective,
                judged=int(figures.judged[objective].value),
                attained=int(figures.attained[objective].value),
            )
            for name, figures in self.classes.items()
            for objective in OBJECTIVES
        ]
