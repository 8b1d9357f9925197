"""What an engine's front end may call in its EngineCore process, by `call_utility_async`.

Promise: every call is harmless for a request that has ended or never was.
"""

import time
from typing import Any

from vllm.v1.engine.core import EngineCore


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


def timed(step: Any) -> Any:
    """vLLM times only the wait for the model's result, which is nothing where the model runs in this process."""

    def timed_step(core: EngineCore) -> Any:
        began = time.perf_counter()
        outputs, executed = step(core)
        elapsed_ms = (time.perf_counter() - began) * 1e3
        for each in outputs.values():
            if each.scheduler_stats is not None and each.scheduler_stats.iteration_details is not None:
                each.scheduler_stats.iteration_details.elapsed_ms = elapsed_ms
        return outputs, executed

    timed_step._penstock = True  # type: ignore[attr-defined]
    return timed_step


def connector(core: EngineCore) -> Any:
    return core.scheduler.get_kv_connector().connector_scheduler


def install() -> None:
    """Adds the calls to EngineCore, which looks utilities up by name. Idempotent."""
    for call in (penstock_hand_off, penstock_release, penstock_held):
        setattr(EngineCore, call.__name__, call)
    if not hasattr(EngineCore.step, "_penstock"):
        EngineCore.step = timed(EngineCore.step)
