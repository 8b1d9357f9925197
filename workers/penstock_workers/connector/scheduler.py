"""The scheduler's half of the connector: exact pulls, resumed requests, hand-off and release.

Promise: a request that pulls KV gets exactly the tokens that the holder's blocks cover; a request that goes on
from emitted tokens has the scheduler state of one that emitted them here; KV is held only for a leg that ends
before its answer does. Nothing here raises on bad input: an exception in the scheduler ends the engine.
"""

import logging
import threading
import time
from concurrent.futures import Future
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_scheduler import NixlPullConnectorScheduler
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.request import RequestStatus
from zmq.error import ZMQError

from penstock_workers.connector import extras
from penstock_workers.connector.stats import PullStats

logger = logging.getLogger(__name__)

_HANDSHAKE_S = 6.0  # vLLM gives up after 5


class ResumedPrefillStats(PrefillStats):  # type: ignore[misc]
    """Prefill statistics over prompt and emitted tokens.

    False in a boolean context: vLLM's scheduler then neither fills them nor asserts that what is computed lies
    within the prompt, which does not hold for a request that goes on; the connector fills them instead.
    """

    def __bool__(self) -> bool:
        return False


class ContinuationScheduler(NixlPullConnectorScheduler):  # type: ignore[misc]
    def __init__(self, vllm_config: Any, engine_id: str, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, engine_id, kv_cache_config)
        self._listen_error = ""
        self._released: set[str] = set()
        self._pulling: dict[str, tuple[int, float, str]] = {}
        self._pull_stats = PullStats()
        self._met: set[str] = set()  # engines that KV was pulled from
        self._linger_until = 0.0
        self._max_model_len = vllm_config.model_config.max_model_len

    # --- start -----------------------------------------------------------------------------------------------

    def set_xfer_handshake_metadata(self, metadata: Any) -> None:
        super().set_xfer_handshake_metadata(metadata)
        if self._listen_error:
            raise RuntimeError(self._listen_error)

    def _nixl_handshake_listener(self, encoded: Any, ready: threading.Event, stop: threading.Event, host: str, port: int) -> None:
        """vLLM's listener thread. Where its port is taken vLLM would wait for it forever."""
        try:
            NixlPullConnectorScheduler._nixl_handshake_listener(encoded, ready, stop, host, port)
        except ZMQError as error:
            self._listen_error = f"the NIXL side channel cannot listen on {host}:{port}: {error}"
            ready.set()

    # --- arrival ---------------------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        count = extras.emitted(request.sampling_params.extra_args) if request.sampling_params else 0
        if count:
            resume(request, count)
        super().on_new_request(request)

    # --- pulling ---------------------------------------------------------------------------------------------

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Pulls what the holder's blocks cover, never more and never less.

        Only do_remote_prefill pulls: vLLM's other branch (a leg that both pulled and will be pulled) would read
        the holder's blocks again after a preemption, when they belong to somebody else.
        """
        params = request.kv_transfer_params
        external = 0
        if params and params.get("do_remote_prefill"):
            wrong = extras.covers(params, request.num_tokens, self.block_size)
            if wrong:
                # The engine refuses such legs before they come here; computing is always right.
                logger.error("request %s: %s: computing instead of pulling", request.request_id, wrong)
                self._pull_stats.record_pull(0, 0.0, failed=True)
            else:
                external = max(0, params["remote_num_tokens"] - num_computed_tokens)
        stats = request.prefill_stats
        if isinstance(stats, ResumedPrefillStats) and not request.num_preemptions:
            stats.set(request.num_tokens, num_computed_tokens, external)
        return external, external > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        params = request.kv_transfer_params
        if num_external_tokens > 0:
            self._pulling[request.request_id] = (num_external_tokens, time.perf_counter(), params["remote_engine_id"])
        elif params and params.get("do_remote_prefill"):
            self._linger(params)
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    def _linger(self, params: dict[str, Any]) -> None:
        """Nothing is pulled, and the holder is told so. The first word to an engine waits for a handshake in the
        background, and goes out with a step after it: an idle engine would send it with its next request."""
        if params.get("remote_engine_id") not in self._met:
            self._linger_until = time.perf_counter() + _HANDSHAKE_S

    def has_pending_push_work(self) -> bool:
        """True keeps the engine stepping."""
        return time.perf_counter() < self._linger_until

    def update_connector_output(self, connector_output: Any) -> None:
        super().update_connector_output(connector_output)
        failed = connector_output.failed_recving or ()
        for request_id in connector_output.finished_recving or ():
            started = self._pulling.pop(request_id, None)
            if started is not None:
                tokens, at, engine_id = started
                self._pull_stats.record_pull(tokens, time.perf_counter() - at, request_id in failed)
                (self._met.discard if request_id in failed else self._met.add)(engine_id)

    def take_stats(self) -> PullStats | None:
        if self._pull_stats.is_empty():
            return None
        stats, self._pull_stats = self._pull_stats, PullStats()
        return stats

    # --- holding ---------------------------------------------------------------------------------------------

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        self._pulling.pop(request.request_id, None)
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill"):
            self._linger(params)
        if params and params.get("do_remote_decode") and not params.get("do_remote_prefill") and self._is_whole(request):
            self._stop_heartbeat(request.request_id)
            self._reqs_not_processed.add(request.request_id)
            self._reqs_need_save.pop(request.request_id, None)
            return False, None
        held, out = super().request_finished(request, block_ids)
        return held, out

    def _is_whole(self, request: Any) -> bool:
        """The answer ended with this leg, so nobody will come for the KV."""
        if request.status != RequestStatus.FINISHED_LENGTH_CAPPED:
            return True
        limit = extras.answer_tokens(request.sampling_params.extra_args)
        return request.num_tokens >= self._max_model_len or (limit is not None and request.num_output_tokens >= limit)

    def hand_off(self, request: Any) -> None:
        """The request ends at its next token with its blocks held."""
        params = dict(request.kv_transfer_params or {})
        params["do_remote_decode"] = True
        request.kv_transfer_params = params
        # As update_state_after_alloc does for a leg that is to be pulled from the start: without it the worker
        # ignores the lease, and the blocks stay for ever.
        self._reqs_in_batch.add(request.request_id)
        request.max_tokens = min(request.max_tokens, request.num_output_tokens + max(1, request.num_output_placeholders))

    def release(self, request_id: str) -> None:
        """The next step's metadata tells the worker, which reports the request as sent; that frees its blocks."""
        self._released.add(request_id)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        meta = super().build_connector_meta(scheduler_output)
        meta.penstock_released, self._released = self._released, set()
        return meta


def resume(request: Any, count: int) -> None:
    """Makes the last `count` prompt ids output ids: max_tokens, min_tokens, penalties, seed and grammar go on."""
    prompt = request.prompt_token_ids
    if prompt is None or count >= len(prompt):
        logger.error("request %s: %d emitted tokens do not fit its prompt", request.request_id, count)
        return
    tail = prompt[-count:]
    del prompt[-count:]
    request.num_prompt_tokens -= count
    request._output_token_ids.extend(tail)
    request.sampling_params.extra_args[extras.EMITTED_IDS] = tail
    request.prefill_stats = ResumedPrefillStats()
    structured = request.structured_output_request
    if structured is not None:
        structured._grammar = advanced(structured._grammar, request.request_id, tail)


def advanced(grammar: Any, request_id: str, tail: list[int]) -> Any:
    """The grammar, or the future of it, after `tail`; one that refuses it fails its request."""

    def advance(compiled: Any) -> Any:
        if not compiled.accept_tokens(request_id, tail):
            raise ValueError("the emitted tokens do not follow the grammar")
        return compiled

    if grammar is None or isinstance(grammar, Exception):
        return grammar
    later: Future[Any] = Future()

    def done(compiled: "Future[Any]") -> None:
        try:
            later.set_result(advance(compiled.result()))
        except Exception as error:  # noqa: BLE001 - whatever the compiler raises belongs to the request
            later.set_exception(error)

    if isinstance(grammar, Future):
        grammar.add_done_callback(done)
        return later
    try:
        return advance(grammar)
    except ValueError as error:
        later.set_exception(error)
        return later
