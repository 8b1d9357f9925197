"""What faults cost: half of the fleet dying at once under load, and what a cancelled stream leaves behind in the router.

Method, half: 8 fake workers and 2 routers, each a process; an open loop of Poisson arrivals at 60 % of what the fleet carries
(`max_running` sequences a step on each worker); 4 workers are killed at once and stay dead. Tokens are counted as clients
receive them. What the rest carries is computed from its step time, and measured over the last third.

Method, cancelled: closed loop of streams that are cancelled after a random number of messages, also before the first, with few
prompts, so that the bounded caches are full early; resident memory of the router over the number of cancelled streams, by
least squares after a warm-up.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import load
import rig
import uvloop

from penstock_proto.v1.inference_pb2 import GenerateResponse

sys.path.insert(0, str(rig.ROOT / "e2e"))
from chaos.client import Checker, Tally
from chaos.figures import Counters, percentiles, slope
from chaos.fleet import TINY, Fleet, scrape
from chaos.oracle import Mix, Oracle
from chaos.verdict import DEFECTS

WORKERS, RUNNING, STEP_S = 8, 6, 0.04
BIN_S = 0.5
BOUNDS = {"return_s": 5.0, "attempts_per_request": 1.3, "bytes_per_cancelled_stream": 32.0}


@dataclass
class Flow:
    """Tokens as they arrive."""

    bins: Counter[int] = field(default_factory=Counter)

    def rate(self, first_s: float, last_s: float) -> float:
        bins = range(round(first_s / BIN_S), round(last_s / BIN_S))
        return sum(self.bins[b] for b in bins) / (len(bins) * BIN_S) if len(bins) else 0.0


class Counting(Checker):
    """A checker that notes when each token came."""

    def __init__(self, fleet: Fleet, tally: Tally, flow: Flow, began: float) -> None:
        super().__init__(fleet, tally, began=began, hung_s=120.0)  # what is left is overloaded: streams queue
        self.flow = flow

    def heard(self, tokens: int) -> None:
        self.flow.bins[int((time.monotonic() - self._began) / BIN_S)] += tokens


async def arrivals(checker: Checker, oracle: Oracle, rate: float, seconds: float, rng: Random) -> int:
    """Open loop: nobody waits for an answer before asking the next."""
    began, due, number = time.monotonic(), 0.0, 0
    async with asyncio.TaskGroup() as group:
        while (due := due + rng.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            number += 1
            group.create_task(checker.stream(oracle.ask(rng, number), number))
    return number


async def _half(seed: int, before_s: float, after_s: float, folder: Path) -> dict[str, Any]:
    fake = {"base_s": STEP_S, "prefill_s": 0.00005, "decode_s": 0.0, "max_running": RUNNING, "kv_blocks": 2048}
    tokens = 48
    mix = Mix(http=0.0, stops=0.0, prefix_tokens=(8, 64), tail_tokens=(4, 16), max_tokens=(tokens, tokens))
    carries = RUNNING / STEP_S
    rate = 0.6 * WORKERS * carries / (tokens + 1)  # a step of its own for each prefill
    oracle, tally, flow, counters = Oracle(TINY, mix), Tally(), Flow(), Counters()
    router = {"topology_mode": "colocated", "hold_s": 60.0}
    async with Fleet(folder, ("workers",) * WORKERS, fake=fake, router=router, restart=False) as fleet:
        began = time.monotonic()
        async with Counting(fleet, tally, flow, began) as checker:
            asking = asyncio.create_task(arrivals(checker, oracle, rate, before_s + after_s, Random(seed)))
            await asyncio.sleep(before_s)
            for worker in fleet.workers[::2]:
                worker.signal(signal.SIGKILL)
            died = time.monotonic() - began
            requests = await asking
            for process in fleet.routers:
                counters.saw(process.name, process.incarnation, scrape(process.http))
            crashes = list(fleet.crashes)
    return _account(requests, rate, carries, flow, tally, counters, died, before_s, after_s, crashes)


def _account(
    requests: int, rate: float, carries: float, flow: Flow, tally: Tally, counters: Counters, died: float,
    before_s: float, after_s: float, crashes: list[str],
) -> dict[str, Any]:  # fmt: skip
    kinds = Counter[str]()
    for labels, count in counters.total("penstock_router_legs_total").items():
        kinds[labels.partition(",")[0]] += round(count)
    end = before_s + after_s
    rest = flow.rate(end - after_s / 3, end)
    back = next((t for i in range(int(after_s)) if flow.rate(t := died + i, t + 1.0) >= 0.9 * rest), None)
    return {
        "requests": requests, "rate_rps": round(rate, 2), "crashes": crashes,
        "tokens_per_s": {
            "fleet_carries": round(WORKERS * carries), "rest_carries": round(WORKERS * carries / 2),
            "before": round(flow.rate(before_s / 3, before_s)), "rest_measured": round(rest),
        },
        "tokens_per_s_by_second_after_death": [round(flow.rate(died + i, died + i + 1.0)) for i in range(min(12, int(after_s)))],
        "return_to_90_percent_s": None if back is None else round(back - died + 1.0, 1), "bound_return_s": BOUNDS["return_s"],
        "upstream_attempts_per_request": round((kinds["whole"] + kinds["prefill"] + kinds["resume"]) / max(1, requests), 3),
        "bound_attempts": BOUNDS["attempts_per_request"], "legs": dict(kinds),
        "failovers": counters.total("penstock_router_failovers_total"),
        "outcomes": dict(tally.outcomes), "defects": sum(tally.outcomes[d] for d in DEFECTS),
        "longest_gap_of_moved_streams_s": percentiles(tally.moved_gaps_s), "moved_streams": len(tally.moved_gaps_s),
        "first_defects": tally.defects[:5],
    }  # fmt: skip


async def _cancel(address: str, pid: int, streams: int, points: list[tuple[float, float]]) -> Counter[str]:
    """Cancels so many streams; memory is read every hundredth of them."""
    rng = Random(1)
    prompts = [load.encode(f"Cancelled {i}: tell me more. " * (1 + i % 20), 200) for i in range(50)]
    channels = [grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)]
    calls = [c.unary_stream(load.GENERATE, request_serializer=None, response_deserializer=None) for c in channels]
    ends, every = Counter[str](), max(1, streams // 100)

    async def client(which: int) -> None:
        while ends["cancelled"] < streams:
            stream = calls[which % 4](prompts[rng.randrange(len(prompts))])
            messages, leave_after = 0, rng.choice((0, 0, 1, 2, 3))
            try:
                if not leave_after:
                    await stream.initial_metadata() if rng.random() < 0.5 else await asyncio.sleep(0.002)
                while messages < leave_after and (data := await stream.read()) is not grpc.aio.EOF:
                    messages += bool(GenerateResponse.FromString(data).token_ids)
                ends["cancelled" if stream.cancel() else "ended"] += 1
            except grpc.aio.AioRpcError as error:
                ends[error.code().name] += 1
            finally:
                stream.cancel()
            if ends["cancelled"] >= every * len(points):
                points.append((ends["cancelled"], rig.rss_mib(pid)))

    await asyncio.gather(*(client(i) for i in range(48)))
    for channel in channels:
        await channel.close()
    return ends


def cancelled(streams: int) -> dict[str, Any]:
    with rig.fake_service(8, fake={"base_s": 0.005}, pin=False, router={"log_level": "error"}) as service:
        assert service.router
        pid = service.router.pid
        warm: list[tuple[float, float]] = []
        points: list[tuple[float, float]] = []
        uvloop.run(_cancel(service.grpc, pid, streams // 5, warm))
        began = time.monotonic()
        ends = uvloop.run(_cancel(service.grpc, pid, streams, points))
        wall = time.monotonic() - began
        time.sleep(2)
        left = scrape(service.http).get("penstock_router_open_streams", -1.0)
    grown = slope(points) * 2**20
    return {
        "streams": streams, "ends": dict(ends), "seconds": round(wall, 1), "open_streams_left": left,
        "rss_mib": {"cold": round(warm[0][1], 2), "warm": round(points[0][1], 2), "end": round(points[-1][1], 2)},
        "bytes_per_stream": round(grown, 1), "bound": BOUNDS["bytes_per_cancelled_stream"],
        "bytes_per_stream_end_to_end": round((points[-1][1] - points[0][1]) * 2**20 / streams, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["half", "cancelled"], default=None)
    parser.add_argument("--streams", type=int, default=100_000, help="to cancel")
    parser.add_argument("--seconds", type=float, default=24.0, help="after the half has died")
    parser.add_argument("--seed", type=int, default=4)
    args = parser.parse_args()
    out: dict[str, Any] = {}
    if args.only != "cancelled":
        with tempfile.TemporaryDirectory(prefix="penstock-half-") as folder:
            out["half_of_the_fleet_dies"] = uvloop.run(_half(args.seed, 12.0, args.seconds, Path(folder)))
    if args.only != "half":
        out["cancelled_streams"] = cancelled(args.streams)
    json.dump(out, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
