"""What a worker says of itself: Hello, load, role, drain.

Promise: one place for the facts in reports; synchronous, one owner, no I/O and no clock.
"""

from penstock_proto.v1.fleet_pb2 import Capacity, Draining, HashSettings, Hello, LoadReport
from penstock_workers.engine.protocol import EngineInfo, StepStats
from penstock_workers.pool.legs import LegTable
from penstock_workers.pool.roles import Held

_IDLE = StepStats(0.0, 0, 0, 0, 0, 0, 0, 0.0)


class WorkerState:
    def __init__(self, info: EngineInfo, table: LegTable, *, pool: str, role: str, model: str, address: str) -> None:
        self.info = info
        self.role = Held(role)
        self.address = address
        self.draining: Draining | None = None
        self.stats = _IDLE
        self.steps = 0
        self._table = table
        self._pool = pool
        self._model = model

    def step(self, stats: StepStats) -> None:
        self.stats = stats
        # A step without work reports a release or an abort; it says nothing of legs that the engine has yet to see.
        if stats.prefill_tokens or stats.decodes or stats.duration_s:
            self.steps += 1
            self._table.step()

    def began(self) -> list[int]:
        """Marks of requests whose answers began since the last call."""
        began, self._table.began = self._table.began, []
        return began

    def hello(self) -> Hello:
        info, identity = self.info, self._table.identity
        return Hello(
            worker_id=identity.worker_id,
            incarnation=identity.incarnation,
            pool=self._pool,
            role=self.role.role,
            role_epoch=self.role.epoch,
            address=self.address,
            model=self._model,
            model_digest=info.model_digest,
            kv_compat=info.kv_compat,
            shape=info.shape,
            capacity=Capacity(
                max_running=info.max_running,
                max_batched_tokens=info.max_batched_tokens,
                kv_blocks=info.kv_blocks,
                block_size=info.block_size,
                max_model_len=info.max_model_len,
                vocab_size=info.vocab_size,
            ),
            hash=HashSettings(algorithm="sha256_cbor", root=info.hash_root),
            capabilities=info.capabilities,
        )

    def load(self, router_id: str) -> LoadReport:
        # An engine says nothing while idle: its last step may have had work.
        stats = self.stats if len(self._table) else _IDLE
        return LoadReport(
            running=stats.running,
            waiting=stats.waiting,
            prefill_tokens=stats.waiting_tokens,
            context_tokens=stats.context_tokens,
            kv_usage=self.stats.kv_usage,
            steps=self.steps,
            last_leg_id=self._table.covered(router_id),
        )
