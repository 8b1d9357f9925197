"""The one module that imports vLLM in a worker's own process; importing it takes seconds.

Promise: `StepLLM` is vLLM's AsyncLLM whose EngineCore outputs go to one callback, a whole engine step at a time,
instead of through a queue and a task per request.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from vllm import SamplingParams
from vllm.config import KVEventsConfig, KVTransferConfig
from vllm.config.structured_outputs import StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils import system_utils
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine import FinishReason as CoreFinish
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor import Executor
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats
from vllm.version import __version__ as VLLM_VERSION

__all__ = [
    "VLLM_VERSION",
    "CoreFinish",
    "EngineCoreEventType",
    "EngineCoreOutputs",
    "EngineCoreRequest",
    "EngineCoreRequestType",
    "EngineDeadError",
    "SamplingParams",
    "StepLLM",
    "StructuredOutputsParams",
    "VLLMValidationError",
    "config_of",
    "sampling_params",
    "start_children_by",
]

logger = logging.getLogger(__name__)

_RECORD_EVERY_S = 0.2


def config_of(kwargs: dict[str, Any]) -> Any:
    """vLLM's config from `vllm_args.engine_kwargs`."""
    args = kwargs | {
        "kv_transfer_config": KVTransferConfig(**kwargs["kv_transfer_config"]),
        "kv_events_config": KVEventsConfig(**kwargs["kv_events_config"]),
        "structured_outputs_config": StructuredOutputsConfig(**kwargs["structured_outputs_config"]),
    }
    return AsyncEngineArgs(**args).create_engine_config(UsageContext.ENGINE_CONTEXT)


def start_children_by(method: str) -> None:
    """After `config_of`, which chooses for itself. In a Ray actor vLLM would always spawn."""
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = method
    if method == "fork":
        system_utils.is_in_ray_actor = lambda: False


def sampling_params(kwargs: dict[str, Any], structured: dict[str, Any] | None) -> SamplingParams:
    outputs = StructuredOutputsParams(**structured) if structured is not None else None
    return SamplingParams(**kwargs, structured_outputs=outputs, output_kind=RequestOutputKind.DELTA)


class StepLLM(AsyncLLM):  # type: ignore[misc]
    """AsyncLLM with one consumer of whole steps. Made outside the event loop; `listen` starts the consumer."""

    def __init__(self, config: Any, prometheus: bool) -> None:
        self._on_step: Callable[[EngineCoreOutputs], None] = lambda _: None
        self._on_dead: Callable[[str], None] = lambda _: None
        super().__init__(
            config,
            executor_class=Executor.get_class(config),
            log_stats=False,
            log_requests=False,
            stat_loggers=[PrometheusStatLogger],
        )
        self._prometheus = prometheus
        self._metrics: Any = self.logger_manager
        self._pending = IterationStats()
        self._recorded_at = 0.0

    def __del__(self) -> None:
        """`VllmEngine.close` ends it; at interpreter exit AsyncLLM's own would fail noisily."""

    def listen(self, on_step: Callable[[EngineCoreOutputs], None], on_dead: Callable[[str], None]) -> None:
        self._on_step, self._on_dead = on_step, on_dead
        self.output_handler = asyncio.get_running_loop().create_task(self._consume(), name="engine-steps")

    def _run_output_handler(self) -> None:
        """AsyncLLM's own consumer, which `listen` replaces."""

    async def _consume(self) -> None:
        try:
            while True:
                outputs = await self.engine_core.get_output_async()
                self._on_step(outputs)
                if self._prometheus:
                    self._record(outputs)
        except Exception as error:  # noqa: BLE001 - whatever ends the consumer ends the engine
            self._on_dead(f"{type(error).__name__}: {error}")

    def _record(self, outputs: EngineCoreOutputs) -> None:
        """Counters are summed and gauges are the latest: vLLM's logger costs more than all else done per step."""
        stats, pending = outputs.scheduler_stats, self._pending
        for output in outputs.outputs:
            pending.num_generation_tokens += len(output.new_token_ids)
            if output.prefill_stats is not None:
                pending.prompt_token_stats.update_from_output(output.prefill_stats)
        now = time.monotonic()
        deltas = stats is not None and (stats.prefix_cache_stats.requests or stats.kv_connector_stats)
        idle = stats is not None and not stats.num_running_reqs
        if deltas or idle or now - self._recorded_at >= _RECORD_EVERY_S:
            self._recorded_at, self._pending = now, IterationStats()
            self._metrics.record(scheduler_stats=stats, iteration_stats=pending, engine_idx=0)

    def build(
        self, name: str, token_ids: list[int], params: SamplingParams, tasks: tuple[str, ...], priority: int, salt: str
    ) -> EngineCoreRequest:
        """vLLM's own checks and defaults; raises what a caller got wrong."""
        prompt: dict[str, Any] = {"type": "token", "prompt_token_ids": token_ids}
        if salt:
            prompt["cache_salt"] = salt
        request = self.input_processor.process_inputs(
            name, prompt, params, supported_tasks=tasks, arrival_time=time.time(), priority=priority
        )
        request.external_req_id = name
        return request

    def send(self, kind: EngineCoreRequestType, payload: Any) -> None:
        """In the order of calls: a leg's abort never overtakes its start."""
        if kind is EngineCoreRequestType.ADD:
            payload.client_index = self.engine_core.client_index
        sent = asyncio.ensure_future(self.engine_core._send_input(kind, payload))
        sent.add_done_callback(_log_failed_send)

    def close_sockets(self) -> None:
        """What vLLM leaves open; call on the loop, after `shutdown`, then `end_context` anywhere."""
        for socket in list(self.engine_core.ctx._sockets):
            socket.close(linger=0)

    def end_context(self) -> None:
        self.engine_core.resources.ctx.term()

    def core_processes(self) -> list[Any]:
        manager = self.engine_core.resources.engine_manager
        return list(manager.processes) if manager is not None else []


def _log_failed_send(sent: "asyncio.Future[Any]") -> None:
    if not sent.cancelled() and sent.exception() is not None:
        logger.error("a message to EngineCore was not sent: %s", sent.exception())
