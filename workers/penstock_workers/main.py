"""Runs workers without Ray: `python -m penstock_workers.main --config FILE [--count N]`.

Promise: SIGTERM and SIGINT drain and exit 0; a second signal exits at once; an engine's death exits 1.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from penstock_workers.config import WorkerConfig, load_config
from penstock_workers.model.refused import SourceRefused
from penstock_workers.pool import log as logs
from penstock_workers.pool.engines import make_engine
from penstock_workers.pool.worker import Worker

log = logging.getLogger(__name__)


async def run(configs: Sequence[WorkerConfig]) -> int:
    """Until a signal or the death of an engine."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stop, number)
    workers = [Worker(config, await make_engine(config)) for config in configs]
    asked = asyncio.create_task(stop.wait())
    try:
        starts = [asyncio.create_task(w.start()) for w in workers]
        await _first(asked, asyncio.gather(*starts))
        if not asked.done():
            await _first(asked, *(asyncio.create_task(_end(w)) for w in workers))
        if any(w.died.done() for w in workers):
            return 1
        await asyncio.gather(*(w.drain("the process was asked to end") for w in workers))
        return 0
    finally:
        asked.cancel()
        await asyncio.gather(*(w.stop() for w in workers))


async def _first(asked: "asyncio.Task[bool]", *others: "asyncio.Future[Any]") -> None:
    """Until one has ended; raises what it raised. The others, but `asked`, are cancelled."""
    await asyncio.wait((asked, *others), return_when=asyncio.FIRST_COMPLETED)
    ended = [o for o in others if o.done()]
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for other in ended:
        other.result()


async def _end(worker: Worker) -> None:
    """Returns when the engine is dead, or somebody has drained the worker to end it."""
    await asyncio.wait((worker.died, worker.left), return_when=asyncio.FIRST_COMPLETED)


def _on_signal(stop: asyncio.Event, number: int) -> None:
    if stop.is_set():
        log.warning("second signal: ending now", extra={"signal": signal.Signals(number).name})
        raise SystemExit(1)
    stop.set()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="penstock_workers.main", description="One worker, or several fake ones, without Ray.")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML or JSON")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="workers in this process (fake engine only)")
    args = parser.parse_args(argv)
    try:
        config = load_config(args.config)
    except (OSError, ValidationError, ValueError) as error:
        print(f"{args.config}: {error}", file=sys.stderr)
        return 2
    if args.count < 1 or (args.count > 1 and config.engine != "fake"):
        print(f"--count: {args.count}: at least 1, and more than 1 only with engine: fake", file=sys.stderr)
        return 2
    logs.configure(config.log_level)
    configs = [config] if args.count == 1 else [config.numbered(i) for i in range(args.count)]
    try:
        if config.engine == "fake":
            import uvloop  # a fake's cost is the loop's; vLLM runs on asyncio's

            return int(uvloop.run(run(configs)))
        return asyncio.run(run(configs))
    except SourceRefused as error:
        print(str(error), file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{args.config}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
