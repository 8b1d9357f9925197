"""One worker: an engine, its legs, its server and its reports, put together.

Promise: `start` returns when routers may send legs; `drain` takes no new leg and returns when the running ones have ended or
moved, with their KV pulled; `stop` leaves no task, socket or child. When the engine dies or hangs every leg ends with fault
`gone` and `died` tells its owner, who ends the process.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from penstock_proto.v1.common_pb2 import FinishReason
from penstock_proto.v1.fleet_pb2 import CostReport, Draining
from penstock_workers.config import WorkerConfig
from penstock_workers.cost_fit import CostFit
from penstock_workers.engine.protocol import Engine, EngineOutput, Fault, KvOp, StepStats, TransferStats
from penstock_workers.metrics import WorkerMetrics
from penstock_workers.pool import hang
from penstock_workers.pool.legs import Identity, LegTable
from penstock_workers.pool.reports import Reports
from penstock_workers.pool.server import Drained, WorkerServer, WorkerServicer
from penstock_workers.pool.state import WorkerState
from penstock_workers.pool.watch import EngineWatch
from penstock_workers.text import Tokens

log = logging.getLogger(__name__)

_DRAIN_POLL_S = 0.02
_LAST_PULL_S = 2.0
_FLUSH_S = 1.0
_OUTCOMES: dict[int, str] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "abort",
    FinishReason.LEG_END: "leg_end",
}


@dataclass(slots=True)
class _Parts:
    """What exists once the engine is open."""

    tokens: Tokens
    table: LegTable
    state: WorkerState
    servicer: WorkerServicer
    server: WorkerServer
    reports: Reports


class Worker:
    def __init__(self, config: WorkerConfig, engine: Engine) -> None:
        self.config = config
        self.engine = engine
        self.metrics = WorkerMetrics()
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.incarnation = secrets.randbits(63)
        self.metrics_address = ""
        self._cost = CostFit()
        self._parts: _Parts | None = None
        self._stop_metrics: Callable[[], None] = lambda: None
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # asked to end the process
        self._draining: asyncio.Task[Drained] | None = None
        limits = hang.Limits(config.hang_floor_s, config.first_step_s)
        self._watch = EngineWatch(engine, limits, work=self._in_flight, known=self._cost.known, on_dead=self.on_dead)

    @property
    def _up(self) -> _Parts:
        assert self._parts is not None, "the worker has not started"
        return self._parts

    @property
    def address(self) -> str:
        """host:port that routers dial."""
        return self._up.state.address

    @property
    def table(self) -> LegTable:
        return self._up.table

    @property
    def state(self) -> WorkerState:
        return self._up.state

    @property
    def reports(self) -> Reports:
        return self._up.reports

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        config = self.config
        self._loop = asyncio.get_running_loop()
        await self.engine.open(self)
        info = self.engine.info
        tokens = await asyncio.to_thread(Tokens.load, info.model_dir)
        table = LegTable(Identity(config.worker_id, self.incarnation, info.kv_compat), tokens)
        servicer = WorkerServicer(self.engine, table, self)
        server = WorkerServer(servicer, config.host, config.port)
        host = config.advertise_host or config.host
        address = f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"
        state = WorkerState(info, table, pool=config.pool, role=config.role, model=config.model, address=address)
        reports = Reports(
            state,
            config.routers,
            load_report_s=config.load_report_s,
            resolve_every_s=config.resolve_every_s,
            cost=self._cost_report,
            count=self.metrics.report,
        )
        self._parts = _Parts(tokens, table, state, servicer, server, reports)
        self.metrics.watch(self._legs, self._routers, lambda: state.steps, lambda: state.stats.held)
        if config.metrics_port is not None:
            port, self._stop_metrics = self.metrics.serve(config.host, config.metrics_port)
            self.metrics_address = f"{config.host}:{port}"
        await server.start()
        reports.start()
        self._watch.start()
        log.info(
            "worker ready",
            extra={
                "worker_id": config.worker_id, "pool": config.pool, "address": address, "metrics": self.metrics_address,
                "incarnation": self.incarnation, "engine": config.engine, "model_digest": info.model_digest[:12],
            },
        )  # fmt: skip

    async def drain(self, reason: str) -> Drained:
        """Until the legs have ended or moved with their KV, or the drain's time is over; once, however often it is asked for."""
        if self._parts is None:
            return Drained()
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(self._parts, reason), name="drain")
        return await asyncio.shield(self._draining)

    async def _drain(self, parts: _Parts, reason: str) -> Drained:
        limit, began, legs = self.config.drain_timeout_s, self._loop.time(), len(parts.table)
        parts.table.refuses = f"the worker is draining: {reason}"
        parts.state.draining = Draining(reason=reason, deadline_ms=int(limit * 1000))
        self.metrics.draining.set(1)
        parts.reports.draining()
        await parts.server.stop_serving()
        log.info("draining", extra={"reason": reason, "legs": legs})
        await self._until_empty(parts, began + limit)
        cut = len(parts.table)
        self._fail_all(parts, "refused", "the worker's drain is over")
        await parts.servicer.flushed(_FLUSH_S)
        drained = Drained(legs, cut, self._loop.time() - began)
        log.info("drained", extra={"legs": legs, "cut": cut, "held": parts.state.stats.held, "duration_s": drained.duration_s})
        return drained

    async def _until_empty(self, parts: _Parts, end: float) -> None:
        """What an ended leg holds is waited for too: its next leg pulls it, its router rejects it, or its lease ends. Where no
        router is left to say so, a pull may still be under way, and nothing takes longer."""
        router_seen = now = self._loop.time()
        while now < end and not self.died.done():
            if parts.table.attaches:
                router_seen = now
            if not len(parts.table) and (not parts.state.stats.held or now > router_seen + _LAST_PULL_S):
                return
            await asyncio.sleep(_DRAIN_POLL_S)
            now = self._loop.time()

    def leave(self) -> None:
        if not self.left.done():
            self.left.set_result(None)

    def _fail_all(self, parts: _Parts, fault: Fault, message: str) -> None:
        failed = parts.table.fail_all(fault, message)
        parts.servicer.deliver(failed)
        for _ in failed.ended:
            self.metrics.ended(f"fault_{fault}")

    async def stop(self) -> None:
        """Ends legs that still run, then everything else."""
        await self._watch.stop()
        parts, self._parts = self._parts, None
        if self._draining is not None:
            self._draining.cancel()
        if parts is not None:
            await parts.reports.stop()
            await parts.server.stop()
        await self.engine.close()
        stop_metrics, self._stop_metrics = self._stop_metrics, lambda: None
        await asyncio.to_thread(stop_metrics)  # it waits for its thread

    async def check(self) -> None:
        """Raises where the engine is dead. Whether it hangs is watched all the time."""
        if self.died.done():
            raise RuntimeError(f"the engine died: {self.died.result()}")

    # --- EngineSink ---------------------------------------------------------------------------------------------------

    def on_outputs(self, outputs: list[EngineOutput]) -> None:
        self._watch.spoke()
        parts = self._parts
        if parts is None:
            return
        translated = parts.table.translate(outputs)
        parts.servicer.deliver(translated)
        for leg, finish, fault in translated.ended:
            self.metrics.ended(_OUTCOMES.get(finish, f"fault_{fault}"))
            if finish == FinishReason.ERROR:
                log.warning("leg failed", extra={"request_id": leg.request_id, "fault": fault})

    def on_kv(self, ops: list[KvOp]) -> None:
        if self._parts is not None:
            self._parts.reports.kv(ops)

    def on_step(self, stats: StepStats) -> None:
        parts = self._parts
        if parts is None:
            return
        self._watch.stepped(stats.prefill_tokens)
        parts.state.step(stats)
        self._cost.step(stats, self._loop.time())
        parts.reports.load_changed()

    def on_transfer(self, stats: TransferStats) -> None:
        self.metrics.transfer(stats.tokens, stats.failed)
        self._cost.transfer(stats)

    def on_dead(self, reason: str) -> None:
        if self.died.done():
            return
        log.error("engine died", extra={"reason": reason, "worker_id": self.config.worker_id})
        self.died.set_result(reason)
        self.engine.kill(reason)
        if self._parts is not None:
            self._parts.table.refuses = "the engine is dead"
            self._fail_all(self._parts, "gone", f"the engine died: {reason}")

    # --- metrics ------------------------------------------------------------------------------------------------------

    def on_leg_started(self, tokens: int) -> None:
        self._watch.arrived(tokens)
        self.metrics.legs_started.inc()

    def on_legs_lost(self, count: int, router_id: str) -> None:
        if count:
            self.metrics.ended("detached", count)

    def on_leg_aborted(self) -> None:
        self.metrics.ended("abort")

    def _cost_report(self) -> CostReport | None:
        report = self._cost.report()
        if report is not None:
            self.metrics.cost(report)
        return report

    def _in_flight(self) -> hang.InFlight:
        if self._parts is None:
            return hang.InFlight()
        stats = self._parts.state.stats
        return hang.InFlight(stats.waiting_tokens, stats.running, stats.context_tokens, self.engine.info.max_batched_tokens)

    def _legs(self, state: str) -> int:
        if self._parts is None:
            return 0
        total, waiting = len(self._parts.table), self._parts.state.stats.waiting
        return min(waiting, total) if state == "waiting" else max(0, total - waiting)

    def _routers(self, stream: str) -> int:
        if self._parts is None:
            return 0
        return self._parts.reports.joined if stream == "joined" else self._parts.table.attaches
