"""From a worker's configuration to its engine, not open yet.

Promise: vLLM is imported only where it is asked for.
"""

import asyncio
import logging
import socket
from pathlib import Path

from penstock_workers.config import WorkerConfig
from penstock_workers.engine.protocol import Engine
from penstock_workers.model.digest import model_digest
from penstock_workers.model.progress import Progress
from penstock_workers.model.source import resolve

log = logging.getLogger(__name__)

_TELL_EVERY_S = 10.0


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def _find(config: WorkerConfig) -> tuple[Path, Path]:
    cache = Path(config.cache_dir).expanduser()
    return cache, resolve(config.source, cache, _tell, every_s=_TELL_EVERY_S)


def _tell(progress: Progress) -> None:
    done, total = progress.done_bytes, progress.total_bytes
    log.info("fetching the model", extra={"done_bytes": done, "total_bytes": total, "waiting": progress.waiting})


async def make_engine(config: WorkerConfig) -> Engine:
    """Raises SourceRefused where the model cannot be had."""
    cache, model_dir = await asyncio.to_thread(_find, config)
    if config.engine == "fake":
        from penstock_workers.engine.fake import FakeEngine

        return FakeEngine(config.fake, str(model_dir), model=config.model, kv_lease_s=config.kv_lease_s, name=config.worker_id)
    from penstock_workers.engine.vllm_args import VllmSettings
    from penstock_workers.engine.vllm_engine import VllmEngine

    digest = await asyncio.to_thread(model_digest, model_dir, cache)
    given = {} if config.dtype is None else {"dtype": config.dtype}
    return VllmEngine(
        VllmSettings(
            model_dir=str(model_dir),
            model_name=config.model,
            model_digest=digest,
            engine_args={**config.engine_args, **given},
            device=config.device,
            host=config.host,
            nixl_port=config.side_channel_port or _free_port(config.host),
            kv_lease_s=max(1, round(config.kv_lease_s)),
            ready_timeout_s=config.ready_timeout_s,
            # On a CPU a forked core saves a second import of vLLM; a GPU context does not survive a fork.
            start_method="fork" if config.device == "cpu" else "spawn",
        )
    )
