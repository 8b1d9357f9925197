"""vLLM's NIXL connector with exact continuation.

Promise: legs of one answer may run on different engines, by pull, hand-off or recompute, and together emit the
tokens that one engine would. vLLM loads this module by `kv_connector_module_path` in the EngineCore process; it
changes no vLLM file, and uses private names of the pinned version: the engine contract suite covers each.
"""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector import NixlBaseConnector, NixlPullConnector

from penstock_workers.connector.parent import leave_at_once, watch_parent
from penstock_workers.connector.scheduler import ContinuationScheduler
from penstock_workers.connector.stats import PullStats
from penstock_workers.connector.utilities import install
from penstock_workers.connector.worker import ContinuationWorker


class PenstockConnector(NixlPullConnector):  # type: ignore[misc]
    connector_scheduler: Any
    connector_worker: Any

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        # The base's base: NixlPullConnector would make vLLM's own halves, and a second NIXL agent with them.
        NixlBaseConnector.__init__(self, vllm_config, role, kv_cache_config)
        if role == KVConnectorRole.SCHEDULER:
            install()
            watch_parent()
            leave_at_once()
            self.connector_scheduler = ContinuationScheduler(vllm_config, self.engine_id, kv_cache_config)
        else:
            self.connector_worker = ContinuationWorker(vllm_config, self.engine_id, kv_cache_config)

    def get_kv_connector_stats(self) -> Any:
        if self.connector_scheduler is not None:
            return self.connector_scheduler.take_stats()
        return super().get_kv_connector_stats()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Any:
        return PullStats(data=data) if data is not None else PullStats()
