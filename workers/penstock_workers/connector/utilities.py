"""What an engine's front end may call in its EngineCore process, by `call_utility_async`.

Promise: every call is harmless for a request that has ended or never was.
"""

import time
from typing import Any

from vllm.v1.engine.core import EngineCore

from penstock_workers.connector.stats_rows import with_held

_HELD_POLL_S = 0.005


def penstock_hand_off(core: EngineCore, request_id: str) -> bool:
    """End a request at its next token with its KV held; False where it has ended."""
    request = core.scheduler.requests.get(request_id)
    if request is None or request.is_finished():
        return False
    connector(core).hand_off(request)
    return True


def penstock_release(core: EngineCore, request_id: str) -> bool:
    """Free the KV that is held for a finished request; False where none is.

    The engine steps as long as a finished request holds KV, so the release takes effect within a step.
    """
    request = core.scheduler.requests.get(request_id)
    if request is None or not request.is_finished():
        return False
    connector(core).release(request_id)
    return True


def penstock_held(core: EngineCore) -> dict[str, Any]:
    """Requests known, running, waiting, and the share of KV in use."""
    scheduler = core.scheduler
    running, waiting = scheduler.get_request_counts()
    return {
        "known": len(scheduler.requests),
        "running": running,
        "waiting": waiting,
        "kv_usage": scheduler.get_kv_cache_usage(),
    }


def stepped(step: Any) -> Any:
    """EngineCore.step with its true duration, and quiet while finished requests hold KV.

    vLLM times only the wait for the model's result, which is nothing where the model runs in this process; and
    while KV is held it steps every millisecond and reports unchanged statistics each time.
    """

    def quiet_step(core: Any) -> Any:
        began = time.perf_counter()
        outputs, executed = step(core)
        elapsed_ms = (time.perf_counter() - began) * 1e3
        tell_held(core, outputs)
        for client, each in list(outputs.items()):
            stats = each.scheduler_stats
            if stats is None:
                continue
            known = reported(core, stats)
            if stats.iteration_details is not None:
                stats.iteration_details.elapsed_ms = elapsed_ms
            elif known and not each.outputs and not executed:
                del outputs[client]
        if not executed and core.scheduler.has_requests() and not core.scheduler.has_unfinished_requests():
            wait_for_input(core.input_queue)
        return outputs, executed

    quiet_step._penstock = True  # type: ignore[attr-defined]
    return quiet_step


def holding(step: Any) -> Any:
    """EngineCore.step_with_batch_queue, which tells what is held too."""

    def holding_step(core: Any) -> Any:
        outputs, executed = step(core)
        if outputs:
            tell_held(core, outputs)
        return outputs, executed

    holding_step._penstock = True  # type: ignore[attr-defined]
    return holding_step


def tell_held(core: Any, outputs: Any) -> None:
    """Adds to a step's statistics how many ended requests keep their blocks, where that has changed."""
    scheduler = core.scheduler
    held = len(scheduler.requests) - sum(scheduler.get_request_counts())
    if held == getattr(core, "_penstock_held_told", 0):
        return
    for each in outputs.values():
        if each.scheduler_stats is not None:
            each.scheduler_stats.kv_connector_stats = with_held(each.scheduler_stats.kv_connector_stats, held)
            core._penstock_held_told = held
            return


def reported(core: Any, stats: Any) -> bool:
    """The last statistics sent said the same."""
    now = (stats.num_running_reqs, stats.num_waiting_reqs, stats.num_skipped_waiting_reqs, stats.kv_cache_usage)
    same = getattr(core, "_penstock_reported", None) == now and not stats.kv_connector_stats
    core._penstock_reported = now
    return same and not stats.prefix_cache_stats.requests


def wait_for_input(inputs: Any) -> None:
    """Until a message comes, at most a few milliseconds: a puller's notification is seen by polling only."""
    with inputs.not_empty:
        if not inputs.queue:
            inputs.not_empty.wait(_HELD_POLL_S)


def connector(core: EngineCore) -> Any:
    return core.scheduler.get_kv_connector().connector_scheduler


def install() -> None:
    """Adds the calls to EngineCore, which looks utilities up by name. Idempotent."""
    for call in (penstock_hand_off, penstock_release, penstock_held):
        setattr(EngineCore, call.__name__, call)
    if not hasattr(EngineCore.step, "_penstock"):
        EngineCore.step = stepped(EngineCore.step)
        EngineCore.step_with_batch_queue = holding(EngineCore.step_with_batch_queue)
