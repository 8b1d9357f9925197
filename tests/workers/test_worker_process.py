"""Configuration, metrics, cost, and the process of a worker without Ray."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from attach_client import attached, eventually, fake_worker, greedy
from pydantic import ValidationError
from test_worker_reports import addresses, routers

from penstock_proto.v1 import worker_pb2_grpc
from penstock_proto.v1.worker_pb2 import DrainRequest
from penstock_workers.config import WorkerConfig, load_config
from penstock_workers.cost_fit import EVERY_S, CostFit
from penstock_workers.engine.protocol import StepStats, TransferStats
from penstock_workers.main import main


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))}


def test_a_config_is_read_from_json_and_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"engine": "fake", "pool": "prefill", "routers": ["r:9001"]}))
    (tmp_path / "a.yaml").write_text("engine: fake\npool: prefill\nrouters: [r:9001]\n")
    assert load_config(tmp_path / "a.json") == load_config(tmp_path / "a.yaml")
    assert load_config(tmp_path / "a.json").role == "prefill"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"routers": ["nowhere"]}, "'nowhere' is not host:port"),
        ({"port": 70000}, "port"),
        ({"pool": "other"}, "pool"),
        ({"fake": {"base_s": -1}}, "fake.base_s"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_wrong_config_is_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        WorkerConfig.model_validate(wrong)


def test_workers_of_one_process_have_names_and_ports_of_their_own() -> None:
    config = WorkerConfig(worker_id="w", engine="fake", port=9100, metrics_port=9101)
    first, second = config.numbered(0), config.numbered(1)
    assert (first.worker_id, first.port, first.metrics_port) == ("w-0", 9100, 9101)
    assert (second.worker_id, second.port, second.metrics_port) == ("w-1", 0, 0)


def test_costs_are_those_of_the_steps() -> None:
    fit, now = CostFit(), 0.0
    assert fit.report() is None
    for i in range(400):
        prefill, decodes = (i * 37) % 500 if i % 3 == 0 else 0, i % 20
        context = decodes * 300
        seconds = 0.004 + 2e-5 * prefill + 3e-4 * decodes + 1e-7 * context
        fit.step(StepStats(seconds, prefill, decodes, context, 0, 0, 0, 0.0), now)
        now += EVERY_S
        fit.transfer(TransferStats(100 + i, 0.001 + 1e-5 * (100 + i)))
    fit.transfer(TransferStats(10, 99.0, failed=True))
    report = fit.report()
    assert report is not None
    assert report.prefill_s == pytest.approx(2e-5, rel=0.1)
    assert report.error_p50 < 0.05
    assert report.transfer_token_s == pytest.approx(1e-5, rel=0.1)
    assert (report.transfers, report.samples > 300) == (400, True)


def test_a_fast_engine_is_sampled() -> None:
    fit = CostFit()
    for i in range(1000):
        fit.step(StepStats(1e-4, 0, 1, 10, 1, 0, 0, 0.0), i * 1e-4)
    report = fit.report()
    assert report is not None
    assert report.samples <= 1000 * 1e-4 / EVERY_S + 1


@pytest.mark.slow
async def test_metrics_tell_legs_transfers_and_costs(worker_model_dir: Path) -> None:
    async with (
        fake_worker(worker_model_dir, "p", metrics_port=0) as p,
        fake_worker(worker_model_dir, "d", metrics_port=0) as d,
        attached(p.address) as to_p,
        attached(d.address) as to_d,
    ):
        ids = list(range(20, 90))
        one = await to_p.run(ids, greedy(9), max_leg_tokens=1)
        await to_d.run(ids + one.token_ids, greedy(9), emitted=1, chars_sent=one.chars_sent, kv=one.kv)
        running = await to_d.start(ids, greedy(3000))
        await to_d.until(lambda: to_d.legs[running].token_ids)
        await eventually(lambda: d.reports._last_cost)
        ours, theirs = [await asyncio.to_thread(scrape, w.metrics_address) for w in (p, d)]
        assert ours['penstock_worker_legs_ended_total{outcome="leg_end"}'] == 1
        assert theirs['penstock_worker_legs_ended_total{outcome="length"}'] == 1
        assert theirs["penstock_worker_kv_transfer_tokens_total"] == 70
        assert theirs['penstock_worker_kv_transfers_total{outcome="ok"}'] == 1
        assert theirs['penstock_worker_legs{state="running"}'] == 1
        assert theirs['penstock_worker_routers{stream="attached"}'] == 1
        assert theirs["penstock_worker_draining"] == 0
        assert 'penstock_worker_cost_coefficient{term="decode_s"}' in theirs
        assert any(name.startswith("python_gc") for name in theirs), "the process's own metrics are there"


# --- the process ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(tmp_path: Path, config: dict[str, Any], *more: str) -> Iterator[subprocess.Popen[str]]:
    path = tmp_path / "worker.json"
    path.write_text(json.dumps(config))
    args = [sys.executable, "-m", "penstock_workers.main", "--config", str(path), *more]
    started = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.wait()
        assert started.stderr
        started.stderr.close()


def lines_until(started: subprocess.Popen[str], message: str, count: int = 1) -> list[dict[str, Any]]:
    assert started.stderr
    seen: list[dict[str, Any]] = []
    for line in started.stderr:
        seen.append(json.loads(line))
        if sum(x["message"] == message for x in seen) == count:
            return seen
    raise AssertionError(f"no {message!r} in {seen}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_legs_end_and_then_the_process(
    tmp_path: Path, worker_model_dir: Path, number: signal.Signals
) -> None:
    async with routers("a") as made:
        config = {
            "worker_id": "w", "engine": "fake", "source": f"file://{worker_model_dir}", "model": "tiny",
            "fake": {"base_s": 0.005}, "routers": addresses(made),
        }  # fmt: skip
        with process(tmp_path, config, "--count", "2") as started:
            await eventually(lambda: len(made[0].views) == 2 and all(v.snapshots for v in made[0].views))
            hello = made[0].view.last("hello")
            async with attached(hello.address) as client:
                leg = await client.start(list(range(20, 90)), greedy(100))
                await client.until(lambda: client.legs[leg].token_ids)
                started.send_signal(number)
                assert len((await client.answer(leg)).token_ids) == 100
            assert await asyncio.to_thread(started.wait, 20) == 0
            assert {v.last("hello").worker_id for v in made[0].views} == {"w-0", "w-1"}
            assert all(v.last("draining") for v in made[0].views)
            assert made[0].view.count("delta") > 0
            assert started.stderr
            assert not [x for x in started.stderr.read().splitlines() if json.loads(x)["level"] == "error"]


@pytest.mark.slow
async def test_a_process_that_is_killed_frees_its_routers_at_once(tmp_path: Path, worker_model_dir: Path) -> None:
    config = {"worker_id": "w", "engine": "fake", "source": f"file://{worker_model_dir}", "fake": {"base_s": 0.01}}
    with process(tmp_path, config) as started:
        ready = (await asyncio.to_thread(lines_until, started, "worker ready"))[-1]
        async with attached(ready["address"]) as router:
            leg = await router.start(list(range(20, 60)), greedy(3000))
            await router.until(lambda: router.legs[leg].token_ids)
            began = time.monotonic()
            os.kill(started.pid, signal.SIGKILL)
            await eventually(router.call.done)
            print(f"the stream broke {time.monotonic() - began:.3f} s after the kill")


@pytest.mark.slow
async def test_a_worker_that_was_drained_to_leave_ends_its_process(tmp_path: Path, worker_model_dir: Path) -> None:
    config = {"worker_id": "w", "engine": "fake", "source": f"file://{worker_model_dir}", "fake": {"base_s": 0.005}}
    with process(tmp_path, config) as started:
        ready = (await asyncio.to_thread(lines_until, started, "worker ready"))[-1]
        async with attached(ready["address"]) as client, grpc.aio.insecure_channel(ready["address"]) as channel:
            leg = await client.start(list(range(20, 90)), greedy(100))
            await client.until(lambda: client.legs[leg].token_ids)
            drained = await worker_pb2_grpc.WorkerStub(channel).Drain(DrainRequest(leave=True))
            assert (drained.legs, drained.cut) == (1, 0)
            assert len((await client.answer(leg)).token_ids) == 100
        assert await asyncio.to_thread(started.wait, 20) == 0


def test_a_wrong_file_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.json").write_text('{"engine": "fake", "source": "penstock://huge"}')
    assert main(["--config", str(tmp_path / "c.json")]) == 2
    assert "penstock://tiny" in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "none.json")]) == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "e.json").write_text(json.dumps({"engine": "fake", "port": port, "metrics_port": None}))
        assert main(["--config", str(tmp_path / "e.json")]) == 1
    assert str(port) in capsys.readouterr().err
    (tmp_path / "d.json").write_text('{"engine": "vllm"}')
    assert main(["--config", str(tmp_path / "d.json"), "--count", "3"]) == 2
    assert "--count" in capsys.readouterr().err
