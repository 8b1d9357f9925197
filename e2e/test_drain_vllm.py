"""A real worker is drained under load by Worker.Drain: its streams move by KV pull, exactly, and it holds nothing afterwards."""

import http.client
import os
import re
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import pytest
from moving import BLOCK, START_S, Stream, disturbed, expected, manifest, pace, spread, wrong
from service import Service, listening, up

from penstock_client.service import WorkerStatus
from penstock_proto.v1 import worker_pb2_grpc
from penstock_proto.v1.worker_pb2 import DrainRequest, DrainResponse

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.slow]
STREAMS = 16  # all on the one decode worker
ROUNDS = 20 if os.environ.get("PENSTOCK_FULL") else 2
PINNED = ("penstock_worker_kv_held_legs", "vllm:kv_cache_usage_perc", "penstock_worker_legs")


@dataclass
class Drains:
    """What came of them."""

    faults: list[tuple[object, ...]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    computed: list[int] = field(default_factory=list)  # tokens of each leg that was handed over
    cut: int = 0
    pinned: list[dict[str, float]] = field(default_factory=list)
    over_s: list[float] = field(default_factory=list)  # from the last stream's next token to the drain's end

    def __str__(self) -> str:
        return (
            f"{len(self.faults)} wrong {self.faults[:6]}; seams {dict(self.kinds)}; gap {spread(self.gaps)}; computed tokens per "
            f"hand-off at most {max(self.computed, default=0)}; pinned afterwards {self.pinned}; over {max(self.over_s):+.2f} s"
        )


def drain(worker: WorkerStatus, *, leave: bool = False) -> DrainResponse:
    with grpc.insecure_channel(worker.address) as channel:
        return worker_pb2_grpc.WorkerStub(channel).Drain(DrainRequest(reason="a test", leave=leave), timeout=60)


def pinned(service: Service, worker: WorkerStatus) -> dict[str, float]:
    """What the worker's metrics say it holds and runs."""
    for port in listening(service.listener(worker.address)):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
                text = answer.read().decode()
        except (OSError, ValueError, http.client.HTTPException):
            continue
        if "penstock_worker_" in text:
            rows = re.findall(r"^([\w:]+)(?:\{.*\})? (\S+)$", text, re.MULTILINE)
            return {name: float(value) for name, value in rows if name in PINNED and float(value)}
    raise AssertionError(f"{worker.worker_id} serves no metrics")


def drain_once(service: Service, number: int, want: Sequence[Stream], drains: Drains) -> None:
    source = service.wait_for_workers(2)[0]

    def empty() -> tuple[DrainResponse, dict[str, float]]:
        nonlocal source
        source = max((one for one in service.workers() if one.pool == "decode"), key=lambda one: one.legs)
        drained = drain(source)
        return drained, pinned(service, source)

    done = disturbed(service.grpc, [one.case for one in want], empty)
    drained, held = done.result
    faults = wrong(done.streams, want)
    seams = [seam for one in done.streams for seam in one.seams("handoff", "resume")]
    gaps = [gap for leg, gap, _ in seams if leg.kind == "handoff"]
    over = done.at + drained.duration_s - max((came for _, _, came in seams), default=done.at)
    print(
        f"round {number}: {source.worker_id} had {drained.legs} legs, {drained.cut} cut, drained in {drained.duration_s:.2f} s, "
        f"{over:+.2f} s after the last stream went on; pinned then {held}; {len(faults)} wrong; {spread(gaps)}; "
        f"without a seam {pace(done.streams)}", flush=True,
    )  # fmt: skip
    drains.faults += [(number, *one) for one in faults]
    drains.kinds.update(leg.kind for leg, _, _ in seams)
    drains.gaps += gaps
    drains.computed += [leg.computed_tokens for leg, _, _ in seams if leg.kind == "handoff"]
    drains.cut += drained.cut
    drains.pinned += [held] if held else []
    drains.over_s.append(over)
    drain(source, leave=True)
    service.wait_for_workers(2, without=source.worker_id)


def test_a_drained_worker_hands_every_stream_over() -> None:
    with up(manifest(1, 1), timeout_s=START_S) as service:
        service.wait_for_workers(2)
        want, drains = expected(service.grpc, STREAMS), Drains()
        for number in range(ROUNDS):
            drain_once(service, number, want, drains)
        print(f"\n{ROUNDS} drains under {STREAMS} streams: {drains}")
        assert drains.faults == []
        assert drains.cut == 0
        assert drains.pinned == []
        assert max(drains.over_s) <= 1.0
        assert len(drains.gaps) >= 8 * ROUNDS
        assert drains.kinds["resume"] == 0, "every running stream moves by pull"
        assert max(drains.computed) <= BLOCK
