"""Workers as replicas of one Ray Serve application, a deployment per pool.

Promise: Serve owns the process and nothing else: no request passes through it. A replica's constructor returns when its worker
serves, its destructor drains, its health check is the engine's, and the death of its engine ends the process, so that Serve
starts another. So does an engine that hangs, and a worker that was drained to leave.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from typing import Any

from penstock_workers.config import WorkerConfig
from penstock_workers.pool import log as logs
from penstock_workers.pool.engines import make_engine
from penstock_workers.pool.worker import Worker

log = logging.getLogger(__name__)

HEALTH_PERIOD_S = 1.0
HEALTH_TIMEOUT_S = 30.0
_STOP_MARGIN_S = 15.0  # after the drain: closing the server and the engine
_LAST_WORDS_S = 0.1  # for the faults of a dead engine's legs to reach their routers
_CLOSE_S = 3.0


class Replica:
    """The deployment's class; `others` are the handles that tie the application's pools together, unused."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: dict[str, Any], *others: Any
    ) -> None:
        from ray import serve

        _keep_serve_on_loopback()
        made = WorkerConfig.model_validate(config)
        unique = serve.get_replica_context().replica_id.unique_id
        # The pools' configuration is one; the address of its pod is each replica's own.
        host = os.environ.get("PENSTOCK_HOST", made.host)
        with serve_log_kept():
            self._worker = await start_replica(made.model_copy(update={"worker_id": f"{made.worker_id}-{unique}", "host": host}))
        self._watch = asyncio.create_task(self._end_with_engine(), name="engine's death")

    async def check_health(self) -> None:
        await self._worker.check()

    async def _end_with_engine(self) -> None:
        died, left = self._worker.died, self._worker.left
        await asyncio.wait((died, left), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(_LAST_WORDS_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._worker.engine.close()
        if died.done():
            log.error("ending the replica: its engine died", extra={"reason": died.result()})
        else:
            log.info("ending the replica: it was drained to be replaced")
        # Not sys.exit: Ray catches it, and the replica would stay without an engine.
        os._exit(int(died.done()))

    async def __del__(self) -> None:
        """Serve awaits this before it ends the actor."""
        self._watch.cancel()
        await self._worker.drain("the replica is being stopped")
        await self._worker.stop()


def _keep_serve_on_loopback() -> None:
    """Serve gives each replica a gRPC server for calls between deployments, on every interface and by no setting.

    Nothing calls it here, and what it reads is pickled: it gets a loopback port. To be called before the
    constructor ends, because Serve opens the server after it.
    """
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> Any:
        return add_port(server, address.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = add_loopback_port


@contextlib.contextmanager
def serve_log_kept() -> Iterator[None]:
    """Serve's log handlers as they were: vLLM, when it is imported, configures logging anew, which closes every handler.

    A Serve controller that comes back after the loss of its head asks each replica for the path of its log, and stops one that
    fails to answer.
    """
    buffers = [one for one in logging.getLogger("ray.serve").handlers if isinstance(one, MemoryHandler)]
    targets = [one.target for one in buffers]
    try:
        yield
    finally:
        for buffer, target in zip(buffers, targets, strict=True):
            buffer.setTarget(target)


async def start_replica(config: WorkerConfig) -> Worker:
    """A started worker; where it cannot start, nothing of it stays."""
    logs.configure(config.log_level)
    worker = Worker(config, await make_engine(config))
    try:
        await worker.start()
    except BaseException:
        await worker.stop()
        raise
    return worker


def build_app(spec: dict[str, Any]) -> Any:
    """The Serve application of `{"pools": {NAME: {"replicas": N, "worker": WorkerConfig, "env": {...}, "ray": {...}}}}`.

    `env` are environment variables of the replicas; `ray` are further actor options, such as `resources` or `num_gpus`.
    """
    from ray import serve

    bound: list[Any] = []
    for name, pool in reversed(spec["pools"].items()):
        config = WorkerConfig.model_validate(pool["worker"])
        options: dict[str, Any] = {"num_cpus": 0, **pool.get("ray", {})}
        if pool.get("env"):
            options["runtime_env"] = {"env_vars": dict(pool["env"])}
        deployment = serve.deployment(
            Replica,
            name=name,
            num_replicas=pool["replicas"],
            ray_actor_options=options,
            max_ongoing_requests=1,
            health_check_period_s=HEALTH_PERIOD_S,
            health_check_timeout_s=HEALTH_TIMEOUT_S,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=config.drain_timeout_s + _STOP_MARGIN_S,
        )
        # An application has one root; the pools that follow hang on it, so that they live in the same application.
        others = bound if name == next(iter(spec["pools"])) else []
        # Without a version of its own Serve takes every deploy for new code, and a change of replicas would replace them all.
        version = hashlib.sha256(json.dumps([config.model_dump(mode="json"), options], sort_keys=True).encode()).hexdigest()
        versioned = deployment.options(_internal=True, version=version[:16])
        bound.append(versioned.bind(config.model_dump(mode="json"), *others))
    return bound[-1]
