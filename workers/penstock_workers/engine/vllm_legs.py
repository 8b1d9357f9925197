"""The legs a vLLM engine runs, seen from its front end: outputs, ends and the work each step did.

Promise: every leg gets its outputs in order and exactly one end; a leg that is no longer here gets none, and KV
that was held for it is handed to `stray`. No I/O, no clock, no vLLM import.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from penstock_proto.v1.common_pb2 import FinishReason
from penstock_workers.engine import vllm_kv
from penstock_workers.engine.protocol import (
    ContextSource,
    EngineLeg,
    EngineOutput,
    HeldKv,
    Logprob,
    StepStats,
)

_STOP, _LENGTH, _ABORT, _REPETITION = 0, 1, 2, 4  # vLLM's FinishReason; everything else is an error
_PREEMPTED = 3  # vLLM's EngineCoreEventType


@dataclass(slots=True)
class RunningLeg:
    leg: EngineLeg
    name: str  # the request's id in the engine
    answer_tokens: int  # max_tokens of the whole answer
    emitted: list[int] = field(default_factory=list)

    @property
    def context(self) -> int:
        return len(self.leg.token_ids) + len(self.emitted)


class LegTable:
    def __init__(self, kv_lease_s: float, stray: Callable[[dict[str, Any]], None]) -> None:
        self._kv_lease_s, self._stray = kv_lease_s, stray
        self._by_name: dict[str, RunningLeg] = {}
        self._by_key: dict[int, RunningLeg] = {}
        self._context_tokens = 0  # of legs that decode
        self._step_context = 0  # the same, when the last step began
        self._waiting_tokens = 0  # of legs without a token
        self._computed_ahead = 0  # of those, computed by steps that gave no token
        self._held = 0  # ended legs whose KV is held, as the engine told last
        self.preemptions = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, running: RunningLeg) -> None:
        self._by_name[running.name] = self._by_key[running.leg.key] = running
        self._waiting_tokens += len(running.leg.token_ids)

    def get(self, key: int) -> RunningLeg | None:
        return self._by_key.get(key)

    def remove(self, running: RunningLeg) -> None:
        del self._by_name[running.name], self._by_key[running.leg.key]
        if running.emitted:
            self._context_tokens -= running.context
        else:
            self._waiting_tokens -= len(running.leg.token_ids)
        if not self._waiting_tokens:
            self._computed_ahead = 0

    def outputs(self, core_outputs: list[Any]) -> list[EngineOutput]:
        """The outputs of one engine step."""
        out = []
        self._step_context = self._context_tokens
        for core in core_outputs:
            running = self._by_name.get(core.request_id)
            if core.events:
                self.preemptions += sum(event.type == _PREEMPTED for event in core.events)
            if running is not None:
                out.append(self._output(running, core))
            elif core.kv_transfer_params:
                self._stray(core.kv_transfer_params)
        return out

    def _output(self, running: RunningLeg, core: Any) -> EngineOutput:
        ids = core.new_token_ids
        output = EngineOutput(running.leg.key, ids)
        if ids:
            if not running.emitted:
                output.context = self._first(running, core.prefill_stats)
            running.emitted.extend(ids)
            self._context_tokens += len(ids)
            if core.new_logprobs is not None:
                output.logprobs = logprobs_of(core.new_logprobs, len(ids))
        if core.finish_reason is not None:
            self._end(running, core, output)
            self.remove(running)
        return output

    def _first(self, running: RunningLeg, stats: Any) -> ContextSource:
        length = len(running.leg.token_ids)
        self._waiting_tokens -= length
        self._context_tokens += length
        if stats is None:
            return ContextSource(0, 0, length)
        source = ContextSource(stats.num_local_cached_tokens, stats.num_external_cached_tokens, length - stats.num_cached_tokens)
        self._computed_ahead = max(0, self._computed_ahead - source.computed)
        return source

    def _end(self, running: RunningLeg, core: Any, output: EngineOutput) -> None:
        reason, kv = core.finish_reason, core.kv_transfer_params
        if reason in (_STOP, _REPETITION):
            output.finish = FinishReason.STOP
            output.stop_reason = "" if core.stop_reason is None else str(core.stop_reason)
        elif reason == _LENGTH:
            output.finish = FinishReason.LENGTH
            if kv or running.leg.emitted + len(running.emitted) < running.answer_tokens:
                output.finish = FinishReason.LEG_END
        else:
            output.finish = FinishReason.ERROR
            structured = running.leg.sampling.WhichOneof("structured")
            if structured is not None and not running.emitted and reason != _ABORT:
                output.fault, output.fault_field = "caller", structured
                output.fault_message = f"{structured} cannot be compiled, or the emitted tokens do not follow it"
            else:
                output.fault, output.fault_message = "worker", "the engine could not go on with this request"
        if kv:
            if output.finish == FinishReason.LEG_END:
                context = [*running.leg.token_ids, *running.emitted]
                output.kv = HeldKv(vllm_kv.to_wire(kv, context), kv["remote_num_tokens"], self._kv_lease_s)
            else:
                self._stray(kv)

    def step(self, stats: Any, held: int | None = None) -> StepStats:
        """What vLLM's SchedulerStats say of a step, and what the legs here add to it. After `outputs`.

        `held` is told when it changes."""
        self._held = self._held if held is None else held
        details = stats.iteration_details
        duration_s, prefill, decodes = 0.0, 0, 0
        if details is not None:
            duration_s = details.elapsed_ms / 1e3
            decodes = details.num_generation_requests
            # A chunk of a resumed leg counts there as generation of more than one token.
            prefill = details.num_ctx_tokens + details.num_generation_tokens - decodes
            self._computed_ahead = min(self._waiting_tokens, self._computed_ahead + prefill)
        return StepStats(
            duration_s=duration_s,
            prefill_tokens=prefill,
            decodes=decodes,
            context_tokens=self._step_context if decodes else 0,
            running=stats.num_running_reqs,
            waiting=stats.num_waiting_reqs + stats.num_skipped_waiting_reqs,
            waiting_tokens=self._waiting_tokens - self._computed_ahead,
            kv_usage=stats.kv_cache_usage,
            held=self._held,
        )


def logprobs_of(rows: Any, count: int) -> list[Logprob]:
    """vLLM's rows: the sampled token first, then the most likely ones, best first."""
    ids, values = rows.logprob_token_ids, rows.logprobs
    found = []
    for row in range(count):
        tokens, logprobs = ids[row].tolist(), values[row].tolist()
        found.append(Logprob(tokens[0], logprobs[0], tuple(zip(tokens[1:], logprobs[1:], strict=True))))
    return found
