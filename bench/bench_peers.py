"""Penstock's router beside smg's in one run on one machine: CPU seconds per 1,000 requests and per million streamed tokens.

Promise: both get the same prompts, the same number of workers with the same KV capacity, the same cores and the same clock, in
alternating runs; each figure stands beside what proves that the work was done (statuses, token counts, cached tokens). Without
smg, which is not part of the locked environment, it says so in its JSON and ends with 0.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import re
import signal
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_peers_http as http
import load
import peer_smg
import peers
import rig
from bench_router import REQUESTS, Prompts, core_speed

WORKERS, CONCURRENCY = 16, 64
STREAM_TOKENS = 300
READY_S = 300.0
STREAM_PROMPT = "Tell me a story about a river."
COMPARED = {
    "smg_http": f"smg {peer_smg.VERSION} (PyPI), launch {' '.join(peer_smg.FLAGS)}, positional index fed by SubscribeKvEvents, "
    "tokenizer caches off (its default), OpenAI /v1/completions, 16 mock gRPC workers (Python, one process)",
    "penstock_grpc": "Penstock's router, its native gRPC API (what bench_router.py measures), 16 fake workers (one process)",
    "penstock_http": "the same router, OpenAI /v1/completions by the same HTTP load generator as smg's",
    "requests": "text prompts, 80 % one of 32 shared prefixes, 1 output token, 64 at a time; CPU seconds of the router's process "
    "tree per 1,000 requests by /proc/*/task/*/schedstat; median of alternating runs after a warm-up of 200 requests",
    "streams": f"64 streams at a time of {STREAM_TOKENS} tokens, a token a step and a message while the load core keeps up"
    " (tokens_per_message tells); per million tokens, and per million messages",
    "workers": "KV blocks of 32 tokens, 8192 blocks a worker, KV reports every 20 ms, on both sides",
    "pinning": "router alone on the last core; load generator and workers on the first; both services are up in every run, "
    "and the idle one's cost is idle_cores",
    "ratio": "Penstock's CPU over smg's: below 1 Penstock is cheaper",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    wall_s: float
    latency_s: tuple[float, ...]
    check: Callable[[], int]
    """Looks at every answer, ends the bench where one is wrong; how many messages carried tokens."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One run. `load_core` and `others` are shares of a core: all use of the load core, strangers' use of the router's."""

    cpu_s: float
    wall_s: float
    p50_s: float
    messages: int
    load_core: float
    others: float


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    name: str
    cpu_s: Callable[[], float]
    encode: Callable[[str, int, bool], bytes]
    send: Callable[[list[bytes], bool], Answers]

    def run(self, requests: list[bytes], stream: bool = False) -> Sample:
        cores = _busy_s(rig.LOAD_CORE), _busy_s(rig.ROUTER_CORE)
        before, began = self.cpu_s(), time.perf_counter()
        answers = self.send(requests, stream)
        used, took = self.cpu_s() - before, time.perf_counter() - began
        load_core, router_core = (_busy_s(rig.LOAD_CORE) - cores[0]) / took, (_busy_s(rig.ROUTER_CORE) - cores[1]) / took
        others = max(0.0, router_core - used / took)
        return Sample(used, answers.wall_s, statistics.median(answers.latency_s), answers.check(), load_core, others)


def _http_subject(name: str, address: str, cpu_s: Callable[[], float], logs: Callable[[], str]) -> Subject:
    def send(requests: list[bytes], stream: bool) -> Answers:
        done = asyncio.run(http.closed_loop(address, requests, CONCURRENCY))

        def check() -> int:
            if done.errors:
                bad = next((h + b for h, b in zip(done.heads, done.bodies, strict=True) if b" 200" not in h[:13]), b"no answer")
                raise SystemExit(f"{name}: {done.errors} of {len(requests)} requests failed: {bad[:500]!r}\n{logs()}")
            return http.messages(done) if stream else http.usage(done).completion

        return Answers(done.wall_s, done.latency_s, check)

    return Subject(name, cpu_s, lambda text, n, stream: http.encode(address, text, n, stream=stream), send)


def _grpc_subject(name: str, service: rig.Rig) -> Subject:
    def send(requests: list[bytes], stream: bool) -> Answers:
        done = asyncio.run(load.closed_loop(service.grpc, lambda i: requests[i], len(requests), CONCURRENCY))

        def check() -> int:
            if done.errors:
                raise SystemExit(f"{name}: {done.errors} of {len(requests)} requests failed\n{service.logs()}")
            return done.messages

        return Answers(done.wall_s, done.ttft_s, check)

    assert service.router
    pid = service.router.pid
    return Subject(name, lambda: peer_smg.tree_cpu_s(pid), lambda text, n, stream: load.encode(text, n), send)


def _busy_s(core: int) -> float:
    lines = Path("/proc/stat").read_text().splitlines()
    user, nice, system, _, _, irq, softirq, steal = map(int, next(x for x in lines if x.startswith(f"cpu{core} ")).split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def subjects(smg: peer_smg.Smg, ours: rig.Rig) -> list[Subject]:
    assert ours.router
    pid = ours.router.pid
    return [
        _http_subject("smg_http", smg.http, lambda: peer_smg.tree_cpu_s(smg.pid), smg.logs),
        _grpc_subject("penstock_grpc", ours),
        _http_subject("penstock_http", ours.http, lambda: peer_smg.tree_cpu_s(pid), ours.logs),
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """`attempts` times `runs` runs are made; the `runs` in which strangers used least of the router's core count."""

    runs: int
    attempts: int
    scale: float
    step_s: float


def _alternate(
    those: list[Subject], plan: Plan, requests: Callable[[Subject, int, int], list[bytes]], stream: bool, units: int
) -> dict[str, dict[str, Any]]:
    """`requests` makes the requests of a subject (its number) and a run; `units` is what a run's CPU is divided by."""
    samples: dict[str, list[Sample]] = {s.name: [] for s in those}
    for run in range(plan.runs * plan.attempts):
        for number, subject in list(enumerate(those))[:: -1 if run % 2 else 1]:
            batch = requests(subject, number, run)
            samples[subject.name].append(subject.run(batch, stream))
    out = {}
    for name, every in samples.items():
        kept = sorted(every, key=lambda s: s.others)[: plan.runs]
        figures = [s.cpu_s / units for s in kept]
        middle = lambda of, kept=kept: statistics.median(map(of, kept))  # noqa: E731
        out[name] = {
            "figure": statistics.median(figures), "runs": figures, "wall_s": middle(lambda s: s.wall_s),
            "p50_s": middle(lambda s: s.p50_s), "messages": middle(lambda s: s.messages),
            "router_core_used": round(middle(lambda s: s.cpu_s / s.wall_s), 2),
            "load_core_used": round(middle(lambda s: s.load_core), 2),
            "router_core_used_by_others": [round(s.others, 2) for s in kept],
        }  # fmt: skip
    return out


def _ratios(row: dict[str, dict[str, Any]], key: str) -> dict[str, float]:
    smg = row["smg_http"][key]
    return {name: round(row[name][key] / smg, 2) for name in ("penstock_grpc", "penstock_http")}


def _ours_prompt_tokens(service: rig.Rig) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{service.http}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {
        m[1]: float(m[2]) for m in re.finditer(r'^penstock_\w*prompt_tokens_total\{[^}]*source="(\w+)"[^}]*\} (\S+)$', text, re.M)
    }


def _share(before: dict[str, float], after: dict[str, float]) -> float:
    grown = {key: after[key] - before.get(key, 0) for key in after}
    return round(grown.get("cached", 0) / sum(grown.values()), 3)


def _grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {key: round(after[key] - before.get(key, 0), 6) for key in after if after[key] != before.get(key, 0)}


def request_cost(smg: peer_smg.Smg, ours: rig.Rig, tokens: int, plan: Plan) -> dict[str, Any]:
    those, prompts = subjects(smg, ours), Prompts(tokens)
    count = max(CONCURRENCY, int(REQUESTS[tokens] * plan.scale))
    for number, subject in enumerate(those):
        subject.run([subject.encode(prompts(10**8 + 10**7 * number + i), 1, False) for i in range(200)])
    counted, told, mine = dict(smg.counters()), smg.metrics(), _ours_prompt_tokens(ours)

    def requests(subject: Subject, number: int, run: int) -> list[bytes]:
        first = 10**7 * number + count * run
        return [subject.encode(prompts(first + i), 1, False) for i in range(count)]

    row = _alternate(those, plan, requests, stream=False, units=count)
    for figures in row.values():
        rps = round(count / figures.pop("wall_s"))
        figures.pop("messages")
        figures |= {
            "cpu_s_per_1000": round(1000 * figures.pop("figure"), 3), "runs": [round(1000 * f, 3) for f in figures["runs"]],
            "rps": rps, "latency_p50_ms": round(1000 * figures.pop("p50_s"), 2),
        }  # fmt: skip
    now = smg.counters()
    grown = {key: now[key] - counted[key] for key in now}
    return {
        "prompt_tokens": len(prompts.tokenizer.encode(prompts(1)).ids),
        **row,
        "ratio": _ratios(row, "cpu_s_per_1000"),
        "proof": {
            "statuses": "all 200, all with text",
            "smg_prompt_tokens_at_workers": round(grown["prompt_tokens"] / grown["requests"], 1),
            "smg_cached_share_at_workers": round(grown["cached_tokens"] / grown["prompt_tokens"], 3),
            "penstock_cached_share": _share(mine, _ours_prompt_tokens(ours)), "smg_metrics": _grown(told, smg.metrics()),
        },
    }  # fmt: skip


def stream_cost(smg: peer_smg.Smg, ours: rig.Rig, plan: Plan) -> dict[str, Any]:
    those, count = subjects(smg, ours), 2 * CONCURRENCY
    length = max(20, int(STREAM_TOKENS * plan.scale))
    for subject in those:
        subject.run([subject.encode("warm up", 20, True)] * CONCURRENCY, stream=True)
    row = _alternate(
        those, plan, lambda subject, number, run: [subject.encode(STREAM_PROMPT, length, True)] * count, True, count * length
    )
    for figures in row.values():
        figures.pop("p50_s")
        figures |= {
            "cpu_s_per_million_tokens": round(1e6 * figures["figure"], 2),
            "runs": [round(1e6 * f, 2) for f in figures["runs"]],
            "tokens_per_s": round(count * length / figures.pop("wall_s")),
            "tokens_per_message": round(count * length / figures["messages"], 2),
            "cpu_s_per_million_messages": round(1e6 * figures.pop("figure") * count * length / figures.pop("messages"), 2),
        }  # fmt: skip
    return {
        "tokens_per_stream": length, "step_s": plan.step_s, **row, "ratio": _ratios(row, "cpu_s_per_million_tokens"),
        "ratio_per_message": _ratios(row, "cpu_s_per_million_messages"),
    }  # fmt: skip


def idle_cost(smg: peer_smg.Smg, ours: rig.Rig, seconds: float = 3.0) -> dict[str, float]:
    """Cores that each router uses while nobody asks."""
    pair = subjects(smg, ours)[:2]
    before = [s.cpu_s() for s in pair]
    time.sleep(seconds)
    return {s.name: round((s.cpu_s() - b) / seconds, 4) for s, b in zip(pair, before, strict=True)}


def clocks(smg: peer_smg.Smg) -> dict[str, float]:
    """Threads that ended are missing in schedstat: the two must be close for smg's figures to hold."""
    return {"schedstat_s": round(peer_smg.tree_cpu_s(smg.pid), 3), "process_clock_s": round(peer_smg.clock_cpu_s(smg.pid), 3)}


def measure(plan: Plan, only: str | None) -> dict[str, Any]:
    out: dict[str, Any] = {
        "compared": COMPARED,
        "core": core_speed(),
        "plan": dataclasses.asdict(plan),
        "load_average_before": os.getloadavg(),
    }
    voice = Prompts(50).tokenizer.encode(" a story of the river and what was in it", add_special_tokens=False).ids
    if only != "streams":
        with (
            rig.fake_service(WORKERS, fake={"base_s": 0.0}, ready_s=READY_S) as ours,
            peer_smg.service(WORKERS, voice, step_s=0.01, ready_s=READY_S) as smg,
        ):
            out["idle_cores"] = idle_cost(smg, ours)
            out["requests"] = {}
            for tokens in peers.TOKENS:
                print(f"bench_peers: {tokens} tokens", file=sys.stderr, flush=True)
                out["requests"][str(tokens)] = request_cost(smg, ours, tokens, plan)
            out["smg_cpu_clocks"] = clocks(smg)
    if only != "requests":
        print("bench_peers: streams", file=sys.stderr, flush=True)
        with (
            rig.fake_service(WORKERS, fake={"base_s": plan.step_s}, ready_s=READY_S) as ours,
            peer_smg.service(WORKERS, voice, step_s=plan.step_s, ready_s=READY_S) as smg,
        ):
            out["streams"] = stream_cost(smg, ours, plan)
    out["load_average_after"] = os.getloadavg()
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests and of tokens in a stream")
    parser.add_argument("--attempts", type=int, default=1, help="runs made for each that counts, on a machine with other work")
    parser.add_argument("--step-s", type=float, default=0.01, help="a step of streams; longer where the load core is not free")
    parser.add_argument("--only", choices=["requests", "streams"], default=None)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends with it
    reason = peer_smg.missing()
    if reason is not None:
        print(f"bench_peers: skipped: {reason}", file=sys.stderr)
        json.dump({"skipped": reason}, sys.stdout, indent=1)
    else:
        os.sched_setaffinity(0, {rig.LOAD_CORE})
        json.dump(measure(Plan(args.runs, args.attempts, args.scale, args.step_s), args.only), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
