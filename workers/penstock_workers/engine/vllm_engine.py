"""vLLM behind the `Engine` Protocol.

Promise: AsyncLLM in this process, its EngineCore in one child that never outlives `close`; what a leg is wrong
with comes as an output with a fault; a dead EngineCore is told once by `on_dead`; outputs of one engine step
come in one call.
"""

import asyncio
import importlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
from contextlib import suppress
from typing import Any

from penstock_proto.v1.common_pb2 import FinishReason
from penstock_workers.connector.parent import watch_children
from penstock_workers.connector.stats_rows import pulls, take_held
from penstock_workers.engine import vllm_args, vllm_kv, vllm_sampling
from penstock_workers.engine.protocol import (
    EngineInfo,
    EngineLeg,
    EngineOutput,
    EngineSink,
    Fault,
    StepStats,
    TransferStats,
)
from penstock_workers.engine.vllm_args import VllmSettings
from penstock_workers.engine.vllm_events import KvEventReader
from penstock_workers.engine.vllm_legs import LegTable, RunningLeg

logger = logging.getLogger(__name__)

_STARTING = threading.Lock()  # an engine's settings reach its child by the environment, which a process has once
_CAPABILITIES = ("resume", "hand_off", "kv_transfer", "structured_output", "logprobs")
_FIELDS = ("max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
           "frequency_penalty", "repetition_penalty", "seed", "stop_token_ids", "logprobs")  # fmt: skip


class EngineGone(RuntimeError):
    """The engine is dead, hangs or was never opened."""


class CallerFault(ValueError):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class VllmEngine:
    def __init__(self, settings: VllmSettings) -> None:
        self._settings = settings
        self._prefix = secrets.token_hex(4)
        self._dir = ""
        self._sink: EngineSink | None = None
        self._info: EngineInfo | None = None
        self._vllm: Any = None  # penstock_workers.engine.vllm_runtime
        self._llm: Any = None
        self._starting: asyncio.Future[Any] | None = None
        self._tasks: tuple[str, ...] = ()
        self._events: KvEventReader | None = None
        self._legs = LegTable(settings.kv_lease_s, self._release_stray)
        self._last_step: tuple[int, int, float, int] = (0, 0, 0.0, 0)
        self._calls: set[asyncio.Task[Any]] = set()
        self._faults: dict[int, asyncio.Handle] = {}
        self._dead = ""
        self._closing = False

    # --- life ------------------------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineGone("the engine is not open")
        return self._info

    @property
    def preemptions(self) -> int:
        return self._legs.preemptions

    @property
    def core_pids(self) -> tuple[int, ...]:
        """The EngineCore's processes, while the engine is open."""
        return tuple(process.pid for process in self._llm.core_processes()) if self._llm is not None else ()

    async def open(self, sink: EngineSink) -> None:
        self._sink = sink
        self._dir = tempfile.mkdtemp(prefix="penstock-kv-")  # 0700: the sockets in it are this user's
        events, replay = f"ipc://{self._dir}/events", f"ipc://{self._dir}/replay"
        kwargs = vllm_args.engine_kwargs(self._settings, events, replay)
        self._events = KvEventReader(events, replay, sink.on_kv)
        self._events.start()
        try:
            # In a thread: importing and starting take seconds, and this loop serves health checks meanwhile.
            self._starting = asyncio.get_running_loop().run_in_executor(None, self._start, kwargs)
            self._llm = await asyncio.shield(self._starting)
            self._llm.listen(self._on_step, self._on_dead)
            self._tasks = await self._llm.get_supported_tasks()
        except BaseException:
            await self.close()
            raise
        self._info = self._facts(self._llm.vllm_config)

    def _start(self, kwargs: dict[str, Any]) -> Any:
        parallel = kwargs.get("tensor_parallel_size", 1) * kwargs.get("pipeline_parallel_size", 1)
        with _STARTING:
            _must_be_free(self._settings.host, self._settings.nixl_port)
            os.environ.update(vllm_args.environment(self._settings, single_process=parallel == 1))
            watch_children()
            self._vllm = importlib.import_module("penstock_workers.engine.vllm_runtime")
            config = self._vllm.config_of(kwargs)
            self._vllm.start_children_by(self._settings.start_method)
            return self._vllm.StepLLM(config, self._settings.prometheus)

    def _facts(self, config: Any) -> EngineInfo:
        model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
        root = vllm_args.hash_root()
        dtype, shape = str(model.dtype), f"tp{parallel.tensor_parallel_size}pp{parallel.pipeline_parallel_size}"
        compat = vllm_args.kv_compat(
            model=self._settings.model_digest, vllm=self._vllm.VLLM_VERSION, dtype=dtype, kv_dtype=str(cache.cache_dtype),
            quantization=str(model.quantization), block=cache.block_size, root=root.hex(), hash="sha256_cbor",
            layout=f"{self._settings.device}-{shape}",
        )  # fmt: skip
        return EngineInfo(
            model=self._settings.model_name,
            model_dir=self._settings.model_dir,
            model_digest=self._settings.model_digest,
            kv_compat=compat,
            shape=f"{self._settings.device}/{self._settings.model_digest[:16]}/{dtype}/{shape}",
            block_size=cache.block_size,
            kv_blocks=cache.num_gpu_blocks or 0,
            max_model_len=model.max_model_len,
            vocab_size=model.get_vocab_size(),
            max_running=config.scheduler_config.max_num_seqs,
            max_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            hash_root=root,
            kv_lease_s=self._settings.kv_lease_s,
            capabilities=_CAPABILITIES,
        )

    async def check(self) -> None:
        if self._llm is None or self._dead or self._llm.engine_core.resources.engine_dead:
            raise EngineGone(self._dead or "the engine is not running")
        await self._llm.engine_core.call_utility_async("penstock_held")

    def kill(self, reason: str) -> None:
        self._dead = self._dead or reason
        for process in self._llm.core_processes() if self._llm is not None else ():
            process.kill()  # also one that is stopped, and so deaf to everything else

    async def close(self) -> None:
        self._closing = True
        for call in self._calls:
            call.cancel()
        if self._llm is None and self._starting is not None:
            with suppress(Exception):  # its failure is the one that `open` raises
                self._llm = await self._starting
        self._starting = None
        if self._llm is not None:
            processes = self._llm.core_processes()
            await asyncio.to_thread(self._llm.shutdown, self._settings.close_grace_s)
            for process in processes:
                await asyncio.to_thread(_end, process)
            self._llm.close_sockets()
            await asyncio.to_thread(self._llm.end_context)
            self._llm = None
        if self._events is not None:
            await self._events.close()
            self._events = None
        if self._dir:
            shutil.rmtree(self._dir, ignore_errors=True)

    # --- legs ------------------------------------------------------------------------------------------------

    def start(self, leg: EngineLeg) -> None:
        name = f"{self._prefix}-{leg.key}"
        try:
            request = self._request(name, leg)
        except CallerFault as fault:
            self._fault(leg.key, "caller", str(fault), fault.field)
        except vllm_kv.TransferRefused as refused:
            self._fault(leg.key, "transfer", str(refused), "kv")
        except Exception as error:  # noqa: BLE001 - vLLM's own checks raise many types
            if self._vllm is None or self._dead:
                self._fault(leg.key, "worker", self._dead or "the engine is not open")
            else:
                self._fault(leg.key, "caller", _one_line(error), _field_of(error, leg))
        else:
            whole = vllm_sampling.whole_tokens(leg, self.info.max_model_len)
            self._legs.add(RunningLeg(leg, name, whole))
            self._send("ADD", request)

    def _request(self, name: str, leg: EngineLeg) -> Any:
        info = self.info
        if self._dead:
            raise EngineGone(self._dead)
        ids = list(leg.token_ids)
        if not ids:
            raise CallerFault("token_ids", "the prompt has no tokens")
        if len(ids) >= info.max_model_len:
            raise CallerFault("token_ids", f"the context of {len(ids)} tokens leaves no room in the model's {info.max_model_len}")
        if max(ids) >= info.vocab_size or min(ids) < 0:
            raise CallerFault("token_ids", f"a token id lies outside the vocabulary of {info.vocab_size}")
        if not 0 <= leg.emitted < len(ids):
            raise CallerFault("emitted", f"{leg.emitted} emitted tokens of {len(ids)} leave no prompt")
        if vllm_sampling.whole_tokens(leg, info.max_model_len) <= leg.emitted:
            raise CallerFault("max_tokens", f"the answer has its {leg.emitted} tokens already")
        kv = vllm_kv.from_wire(leg.kv_params, ids, info.block_size) if leg.kv_params else None
        params = self._vllm.sampling_params(
            vllm_sampling.sampling_kwargs(leg, info.max_model_len, kv), vllm_sampling.structured(leg.sampling)
        )
        return self._llm.build(name, ids, params, self._tasks, leg.priority, leg.cache_salt)

    def abort(self, key: int) -> None:
        running = self._legs.get(key)
        if running is not None:
            self._legs.remove(running)
            self._send("ABORT", [running.name])
        elif key in self._faults:
            self._faults.pop(key).cancel()

    def hand_off(self, key: int) -> None:
        running = self._legs.get(key)
        if running is not None:
            self._call("penstock_hand_off", running.name)

    def release_kv(self, params: bytes) -> None:
        name = vllm_kv.holder_request(params)
        if name is not None and name.startswith(f"{self._prefix}-"):
            self._call("penstock_release", name)

    def _release_stray(self, params: dict[str, Any]) -> None:
        """KV held for a leg that was aborted while it ended, or that nobody can come for."""
        self._call("penstock_release", params["remote_request_id"])

    # --- to and from EngineCore --------------------------------------------------------------------------------

    def _send(self, kind: str, payload: Any) -> None:
        try:
            self._llm.send(self._vllm.EngineCoreRequestType[kind], payload)
        except self._vllm.EngineDeadError:
            self._on_dead("the EngineCore process is gone")

    def _call(self, method: str, *args: Any) -> None:
        if self._llm is None or self._dead:
            return
        call = asyncio.get_running_loop().create_task(self._llm.engine_core.call_utility_async(method, *args))
        self._calls.add(call)
        call.add_done_callback(self._called)

    def _called(self, call: "asyncio.Task[Any]") -> None:
        self._calls.discard(call)
        if not call.cancelled() and call.exception() is not None and not self._closing:
            logger.warning("a call to EngineCore failed: %s", call.exception())

    def _fault(self, key: int, fault: Fault, message: str, field: str = "") -> None:
        """After this call returns: a sink is never called from within `start`."""
        output = EngineOutput(
            key, [], finish=FinishReason.ERROR, fault=fault, fault_field=field, fault_message=message
        )  # fmt: skip
        self._faults[key] = asyncio.get_running_loop().call_soon(self._emit, output)

    def _emit(self, output: EngineOutput) -> None:
        del self._faults[output.key]
        if self._sink is not None and not self._closing:
            self._sink.on_outputs([output])

    def _on_step(self, core: Any) -> None:
        sink = self._sink
        if sink is None or self._closing:
            return
        outputs = self._legs.outputs(core.outputs)
        if outputs:
            sink.on_outputs(outputs)
        stats = core.scheduler_stats
        if stats is None:
            return
        stats.kv_connector_stats, held = take_held(stats.kv_connector_stats)
        step: StepStats = self._legs.step(stats, held)
        # While KV is held the engine steps about every millisecond with nothing to say.
        now = (step.running, step.waiting, step.kv_usage, step.held)
        if stats.iteration_details is not None or now != self._last_step:
            self._last_step = now
            sink.on_step(step)
        for tokens, seconds, failed in pulls(stats.kv_connector_stats):
            sink.on_transfer(TransferStats(tokens, seconds, failed))

    def _on_dead(self, reason: str) -> None:
        if not self._dead:
            self._dead = reason
            if self._sink is not None and not self._closing:
                self._sink.on_dead(reason)


def _must_be_free(host: str, port: int) -> None:
    """Before the seconds of a start that would fail at its end."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EngineGone(f"nixl_port: {host}:{port} cannot be listened on: {error.strerror}") from error


def _end(process: Any) -> None:
    """After vLLM's own grace: nothing of an engine stays."""
    if process.is_alive():
        logger.warning("EngineCore %s outlived its grace: killing it", process.pid)
        process.kill()
    process.join(5.0)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _field_of(error: Exception, leg: EngineLeg) -> str:
    """The request's field that vLLM complains about."""
    text = str(error)
    named = getattr(error, "parameter", None)
    for field in _FIELDS:
        if named == field or text.startswith(field):
            return field
    return leg.sampling.WhichOneof("structured") or next((field for field in _FIELDS if field in text), "sampling")
