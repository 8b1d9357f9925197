"""Router cost: CPU seconds per 1,000 requests by prompt length, and per million streamed tokens.

Method: router on one core; load generator and 16 fake workers on the other; prompts as text, 80 % of each one of 32 shared
prefixes, then a mark of its own and a tail; one output token; 64 requests at a time; CPU from the kernel's nanosecond
accounting of the router's threads; the median of 3 runs after a warm-up.
"""

import argparse
import asyncio
import json
import os
import pydoc_data.topics
import statistics
import sys
import time
from typing import Any

import load
import peers
import rig
from tokenizers import Tokenizer

BOUNDS = dict(zip(peers.TOKENS, (0.60, 0.80, 1.95, 5.0), strict=True))
REQUESTS = {50: 3000, 500: 2500, 4_000: 1000, 16_000: 400}
STREAM_BOUNDS = {1: 30.0, 8: 9.0}


class Prompts:
    """Texts of an exact number of tokens that share 80 % with 31 others' kin."""

    def __init__(self, tokens: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(rig.TINY / "tokenizer.json"))
        text = "\n".join(pydoc_data.topics.topics.values())
        encoding = self.tokenizer.encode(text[:600_000], add_special_tokens=False)
        shared, mark = int(tokens * 0.8), 8
        offsets = encoding.offsets
        cut = lambda first, n: text[offsets[first][0] : offsets[first + n - 1][1]]  # noqa: E731
        room = len(offsets) - tokens - 1
        self.prefixes = [cut(i * room // 32, shared) for i in range(32)]
        self.tail = cut(room // 2, max(1, tokens - shared - mark))

    def __call__(self, i: int) -> str:
        return f"{self.prefixes[i % 32]} {i * 2654435761 % 2**32:08x}{i:08x} {self.tail}"


def _warm(address: str, prompts: Prompts) -> None:
    asyncio.run(load.closed_loop(address, lambda i: load.encode(prompts(10**6 + i), 1), 200, 32))


def request_cost(service: rig.Rig, tokens: int, runs: int, scale: float) -> dict[str, Any]:
    assert service.router
    prompts = Prompts(tokens)
    real = len(prompts.tokenizer.encode(prompts(1)).ids)
    _warm(service.grpc, prompts)
    count = max(64, int(REQUESTS[tokens] * scale))
    bodies = [load.encode(prompts(i), 1) for i in range(count * runs)]
    figures, rps, p50 = [], [], []
    for run in range(runs):
        before = rig.cpu_s(service.router.pid)
        done = asyncio.run(load.closed_loop(service.grpc, lambda i, r=run: bodies[r * count + i], count, 64))
        figures.append((rig.cpu_s(service.router.pid) - before) / count * 1000)
        rps.append(count / done.wall_s)
        p50.append(statistics.median(done.ttft_s))
        if done.errors:
            raise SystemExit(f"{done.errors} of {count} requests failed\n{service.logs()}")
    return {
        "prompt_tokens": real, "cpu_s_per_1000": round(statistics.median(figures), 3), "runs": [round(f, 3) for f in figures],
        "rps": round(statistics.median(rps)), "latency_p50_ms": round(1000 * statistics.median(p50), 2), "bound": BOUNDS[tokens],
        "peers": {name: row[peers.TOKENS.index(tokens)] for name, row in peers.ROUTER_CPU_S_PER_1000.items()},
    }  # fmt: skip


def stream_cost(tokens_per_step: int, runs: int, streams: int = 64) -> dict[str, Any]:
    """64 streams over 16 workers, a step every 10 ms."""
    fake = {"base_s": 0.01, "tokens_per_step": tokens_per_step}
    with rig.fake_service(16, fake=fake) as service:
        assert service.router
        length = 300 * tokens_per_step
        body = load.encode("Tell me a story about a river.", length)
        asyncio.run(load.closed_loop(service.grpc, lambda i: load.encode("warm up", 20), 64, 64))
        figures, size = [], []
        for _ in range(runs):
            before = rig.cpu_s(service.router.pid)
            done = asyncio.run(load.closed_loop(service.grpc, lambda i: body, streams * 2, streams))
            used = rig.cpu_s(service.router.pid) - before
            figures.append(used / (streams * 2 * length) * 1e6)
            size.append(streams * 2 * length / done.messages)
            if done.errors:
                raise SystemExit(f"{done.errors} streams failed\n{service.logs()}")
    return {
        "tokens_per_step": tokens_per_step, "cpu_s_per_million_tokens": round(statistics.median(figures), 2),
        "runs": [round(f, 2) for f in figures], "tokens_per_message": round(statistics.median(size), 2),
        "bound": STREAM_BOUNDS[tokens_per_step], "peers_per_million_chunks": peers.STREAM_CPU_S_PER_MILLION,
    }  # fmt: skip


def core_speed() -> dict[str, Any]:
    """This core against the one that peers' figures and the bounds come from: the same encode of 508 tokens, median of 9."""
    prompts, times = Prompts(500), []
    for i in range(9):
        text = prompts(i)
        began = time.perf_counter()
        prompts.tokenizer.encode(text)
        times.append(1000 * (time.perf_counter() - began))
    here, reference = statistics.median(times), peers.REFERENCE_ENCODE_MS[508]
    return {"encode_508_ms": round(here, 3), "reference_ms": reference, "times_slower": round(here / reference, 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    parser.add_argument("--only", choices=["requests", "streams"], default=None)
    args = parser.parse_args()
    os.sched_setaffinity(0, {rig.LOAD_CORE})
    out: dict[str, Any] = {"core": core_speed()}
    if args.only != "streams":
        fake = {"base_s": 0.0}
        with rig.fake_service(16, fake=fake) as service:
            out["router_requests"] = {str(t): request_cost(service, t, args.runs, args.scale) for t in peers.TOKENS}
    if args.only != "requests":
        out["router_streams"] = {str(n): stream_cost(n, args.runs) for n in (1, 8)}
    json.dump(out, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
