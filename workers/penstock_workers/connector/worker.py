"""The worker's half of the connector: release of held KV, and sampling state of resumed requests.

Promise: a released request is reported as sent in the same step, and a pull that ends afterwards is not counted
as one after expiry; a resumed request samples as if it had sampled its emitted tokens here; a seeded request
whose prompt is computed in chunks samples as one whose prompt is computed at once, on CPU too.
"""

import time
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_worker import NixlPullConnectorWorker
from vllm.distributed.nixl_utils import NixlWrapper
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from penstock_workers.connector import extras
from penstock_workers.connector.quiet import sleep_between_events
from penstock_workers.connector.stats import PullStats


class ContinuationWorker(NixlPullConnectorWorker):  # type: ignore[misc]
    def __init__(self, vllm_config: Any, engine_id: str, kv_cache_config: Any) -> None:
        delay_us = vllm_config.kv_transfer_config.get_from_extra_config(extras.PROGRESS_DELAY_US, 0)
        if delay_us:
            sleep_between_events(NixlWrapper, delay_us)
        super().__init__(vllm_config, engine_id, kv_cache_config)
        self.xfer_stats = PullStats()
        self._lease_s: float = vllm_config.kv_transfer_config.get_from_extra_config("kv_lease_duration", 30)
        self._newly_released: set[str] = set()
        self._released_at: dict[str, float] = {}
        install_resume()

    def start_load_kv(self, metadata: Any) -> None:
        super().start_load_kv(metadata)
        for request_id in metadata.penstock_released:
            if self._reqs_to_send.pop(request_id, None) is None:
                continue
            # The id stays in _reqs_to_process: a puller that was already reading may still notify.
            self._newly_released.add(request_id)
            self._released_at[request_id] = time.perf_counter()
            self.consumer_notification_counts_by_req.pop(request_id, None)
            self.expected_consumer_notifications_by_req.pop(request_id, None)

    def get_transfer_results(self) -> Any:
        results = super().get_transfer_results()
        if self._released_at:
            late = results.finished_sending & self._released_at.keys()
            results.finished_sending -= late
            self._forget(late)
        results.finished_sending |= self._newly_released
        self._newly_released = set()
        return results

    def _forget(self, late: set[str]) -> None:
        now = time.perf_counter()
        for request_id in [r for r, at in self._released_at.items() if r in late or now - at > self._lease_s]:
            del self._released_at[request_id]
            self._reqs_to_process.discard(request_id)


class SeededGenerator(torch.Generator):  # type: ignore[misc]
    """A CPU generator that can take back the draw of a step whose token is discarded.

    vLLM draws for every request in a step and rewinds the draws of unfinished prefills by the generator's
    offset, which CPU generators do not have. One draw is made per emitted token, so the state before the
    discarded draw is the seed's state after as many draws as tokens were emitted.
    """

    state: CachedRequestState

    def get_offset(self) -> int:
        return 4  # vLLM subtracts 4 and gives the rest to set_offset: the value means nothing here

    def set_offset(self, offset: int) -> None:
        self.manual_seed(self.state.sampling_params.seed)
        draw(self, len(self.state.output_token_ids))


def draw(generator: torch.Generator, count: int) -> None:
    """As the CPU sampler does, once per token."""
    for _ in range(count):
        torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)


def skip_device(generator: torch.Generator, count: int, vocab_size: int) -> None:
    """On a device one exponential_ over the vocabulary is drawn per token, and draws advance an offset."""
    if count:
        before = generator.get_offset()
        torch.empty(vocab_size, device=generator.device).exponential_(generator=generator)
        generator.set_offset(before + count * (generator.get_offset() - before))


def install_resume() -> None:
    """Makes vLLM's V1 worker keep the emitted tokens of a resumed request as its output. Idempotent."""
    if getattr(CachedRequestState, "_penstock_resume", False):
        return
    init = CachedRequestState.__post_init__

    def post_init(self: CachedRequestState) -> None:
        init(self)
        params = self.sampling_params
        extra = params.extra_args if params is not None else None
        tail = (extra or {}).get(extras.EMITTED_IDS)
        if tail and not self.output_token_ids:
            self.output_token_ids = list(tail)
        generator = self.generator
        if generator is None or params is None:
            return
        if generator.device.type == "cpu":
            seeded = SeededGenerator()
            seeded.state = self
            seeded.manual_seed(params.seed)
            draw(seeded, len(self.output_token_ids))
            self.generator = seeded
        else:
            skip_device(generator, len(self.output_token_ids), vocab_size_of())

    CachedRequestState.__post_init__ = post_init
    CachedRequestState._penstock_resume = True


def vocab_size_of() -> int:
    from vllm.config import get_current_vllm_config

    return int(get_current_vllm_config().model_config.get_vocab_size())
