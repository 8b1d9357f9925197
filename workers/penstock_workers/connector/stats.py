"""Statistics of KV pulls, as they travel from the engine's scheduler to its front end."""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import NixlKVConnectorStats

from penstock_workers.connector.stats_rows import PULL_FAILED, PULL_SECONDS, PULL_TOKENS


class PullStats(NixlKVConnectorStats):  # type: ignore[misc]
    """vLLM's transfer statistics with one more row per pulled request: tokens, seconds, failed."""

    def reset(self) -> None:
        super().reset()
        self.data |= {PULL_TOKENS: [], PULL_SECONDS: [], PULL_FAILED: []}

    def record_pull(self, tokens: int, seconds: float, failed: bool) -> None:
        self.data[PULL_TOKENS].append(tokens)
        self.data[PULL_SECONDS].append(seconds)
        self.data[PULL_FAILED].append(int(failed))

    def is_empty(self) -> bool:
        return super().is_empty() and not self.data[PULL_TOKENS]

    def aggregate(self, other: Any) -> "PullStats":
        super().aggregate(other)
        return self
