"""TTFT of the router over the bare engine: concurrency 1, unseen prompts, median of 30, both in one run on one service.

The bare figure is an AsyncLLM of the same arguments in a process of its own; the two are measured alternately in blocks of 10.
"""

import asyncio
import json
import os
import pydoc_data.topics
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import rig
import service as local
from tokenizers import Tokenizer

from penstock_client import Client

LENGTHS = (64, 1024)
COUNT = 30


def prompts(tokens: int, seed: int) -> Iterator[list[int]]:
    """Unseen: the first block differs every time."""
    tokenizer = Tokenizer.from_file(str(rig.TINY / "tokenizer.json"))
    ids = tokenizer.encode("\n".join(pydoc_data.topics.topics.values())[:40_000], add_special_tokens=False).ids
    rng = random.Random(seed)
    while True:
        start = rng.randrange(len(ids) - tokens)
        yield [rng.randrange(200, 1500) for _ in range(8)] + ids[start : start + tokens - 8]


async def bare() -> None:
    """Child process: reads a JSON list of ids per line, answers the TTFT in seconds."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(rig.TINY), dtype="float32", enforce_eager=True, kv_cache_memory_bytes=64 << 20, block_size=32,
            max_model_len=4096, prefix_caching_hash_algo="sha256_cbor", disable_log_stats=True,
        )
    )  # fmt: skip
    print("ready", flush=True)
    for number, line in enumerate(sys.stdin):
        sampling = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        began = time.perf_counter()
        took = 0.0
        async for _ in engine.generate({"prompt_token_ids": json.loads(line)}, sampling, str(number)):
            took = took or time.perf_counter() - began
        print(took, flush=True)
    engine.shutdown()


def measure(address: str, child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdin and child.stdout
    out: dict[str, Any] = {}
    with Client(address) as client:
        for tokens in LENGTHS:
            ours: list[float] = []
            plain: list[float] = []
            source = prompts(tokens, tokens)
            for _ in range(4):
                client.generate(token_ids=next(source), max_tokens=2, temperature=0, ignore_eos=True)
            for block in range(6):
                for _ in range(COUNT // 3):
                    ids = next(source)
                    began = time.perf_counter()
                    if block % 2:
                        with client.stream(token_ids=ids, max_tokens=2, temperature=0, ignore_eos=True) as stream:
                            next(iter(stream))
                            ours.append(time.perf_counter() - began)
                            for _ in stream:
                                pass
                    else:
                        child.stdin.write(json.dumps(ids) + "\n")
                        child.stdin.flush()
                        plain.append(float(child.stdout.readline()))
            mine, theirs = statistics.median(ours), statistics.median(plain)
            out[str(tokens)] = {
                "router_ms": round(mine * 1000, 2), "bare_ms": round(theirs * 1000, 2),
                "added_ms": round((mine - theirs) * 1000, 2), "ratio": round(mine / theirs, 3), "n": len(ours),
            }  # fmt: skip
    return out


def main() -> None:
    env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    with local.up() as running:
        child = subprocess.Popen(
            [sys.executable, __file__, "bare"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )  # fmt: skip
        assert child.stdout and child.stdin
        while child.stdout.readline().strip() != "ready":
            pass
        result = measure(running.grpc, child)
        child.stdin.close()
        child.wait(30)
    json.dump(
        {"ttft_over_bare_engine": result, "bounds": {"64": "added <= 4 ms", "1024": "ratio <= 1.15"}},
        sys.stdout,
        indent=1,
    )
    print()


if __name__ == "__main__":
    if sys.argv[1:] == ["bare"]:
        asyncio.run(bare())
    else:
        main()
