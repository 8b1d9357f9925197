"""Several replicas a pool on a real Ray with the fake engine: other replicas are applied while streams run, and none breaks."""

import asyncio
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from moving import Case, Stream, manifest, run_one
from service import PENSTOCK, Service, up

from penstock_client import AsyncClient

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
STREAMS = 12


def cli(service: Service, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PENSTOCK, *words], capture_output=True, text=True, timeout=180, check=False,
        env={**os.environ, "PENSTOCK_STATE_DIR": str(service.state_dir)},
    )  # fmt: skip


def scale(service: Service, prefill: int, decode: int) -> subprocess.CompletedProcess[str]:
    file = service.state_dir / "other.yaml"
    file.write_text(manifest(prefill, decode))
    return cli(service, "up", "-f", str(file))


async def streams(address: str, during: Callable[[], Any]) -> list[Stream]:
    """Long streams; `during` is called when all have begun."""
    begun, seen = asyncio.Event(), [0]

    def count() -> None:
        seen[0] += 1
        if seen[0] >= 10 * STREAMS:
            begun.set()

    sampling = {"max_tokens": 1500, "ignore_eos": True, "temperature": 0.0}
    async with AsyncClient(address) as client:
        cases = [Case(f"long-{i}", f"Story {i}: the mill by the river " * 4, sampling) for i in range(STREAMS)]
        tasks = [asyncio.create_task(run_one(client, case, count)) for case in cases]
        await begun.wait()
        await asyncio.to_thread(during)
        return list(await asyncio.gather(*tasks))


def test_replicas_come_and_go_under_streams_and_down_lets_them_end() -> None:
    with up(manifest(2, 2), env={"PENSTOCK_ENGINE": "fake"}) as service:
        workers = service.wait_for_workers(4)
        assert len({one.worker_id for one in workers}) == len({one.address for one in workers}) == 4
        want = asyncio.run(streams(service.grpc, lambda: None))
        assert {one.finish for one in want} == {"length"}

        done: list[subprocess.CompletedProcess[str]] = []
        got = asyncio.run(streams(service.grpc, lambda: done.append(scale(service, 2, 1))))
        assert done[0].returncode == 0, done[0].stderr
        assert [one.told for one in got] == [one.told for one in want], [one.error for one in got]
        moved = [leg.kind for one in got for leg in one.legs if leg.kind in {"handoff", "resume"}]
        print(f"\nscaled to 2 + 1 under {STREAMS} streams: moved {moved}; {done[0].stderr.splitlines()}")
        assert "handoff" in moved
        left = service.wait_for_workers(3)
        assert {one.worker_id for one in left} < {one.worker_id for one in workers}, "the others stay as they are"

        assert scale(service, 2, 2).returncode == 0
        again = service.wait_for_workers(4)
        assert {one.worker_id for one in left} < {one.worker_id for one in again}
        assert "is running already" in scale(service, 2, 2).stderr

        ended: list[subprocess.CompletedProcess[str]] = []
        last = asyncio.run(streams(service.grpc, lambda: ended.append(cli(service, "down"))))
        assert [one.told for one in last] == [one.told for one in want], [one.error for one in last]
        assert ended[0].returncode == 0
