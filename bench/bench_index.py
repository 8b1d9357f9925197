"""The KV index's figures: longest match and events, as `peer-performance.md` section 3 measures Dynamo's tree.

Contents: 1,000 sequences of 1,000 blocks in 64 groups that share 500 blocks, held by 16 workers (12 to 16 of
them hold a group's prefix). CPU time of this process, one thread; prints one JSON document.
"""

import argparse
import json
import random
import resource
import sys
from array import array
from collections.abc import Callable, Sequence
from time import process_time_ns
from typing import Any

from penstock_policy.cache.hashes import BlockHasher
from penstock_policy.cache.index import KvIndex

WORKERS, GROUPS, SEQUENCES, SHARED, TAIL = 16, 64, 1000, 500, 500
DYNAMO = {"find_1000_full_us": 30.9, "find_1000_half_us": 29.2, "find_1000_miss_us": 28.5, "find_3_us": 5.3}
TARGET_US = 120.0


def fresh(rng: random.Random, count: int) -> "array[int]":
    return array("Q", [rng.getrandbits(64) for _ in range(count)])


def contents(rng: random.Random) -> tuple[list["array[int]"], list[tuple[int, "array[int]"]]]:
    prefixes = [fresh(rng, SHARED) for _ in range(GROUPS)]
    sequences = [(rng.randrange(WORKERS), prefixes[i % GROUPS] + fresh(rng, TAIL)) for i in range(SEQUENCES)]
    return prefixes, sequences


def percentiles(samples_ns: list[int]) -> dict[str, float]:
    ordered = sorted(samples_ns)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * q))] / 1000 for q in (0.5, 0.99)]
    return {"p50_us": round(at[0], 2), "p99_us": round(at[1], 2)}


def timed(ask: Callable[[Any], object], questions: Sequence[object]) -> dict[str, float]:
    samples = []
    for question in questions:
        begin = process_time_ns()
        ask(question)
        samples.append(process_time_ns() - begin)
    return percentiles(samples)


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def fill(index: KvIndex, sequences: list[tuple[int, "array[int]"]], batch: int) -> int:
    """CPU nanoseconds of storing every sequence in batches."""
    begin = process_time_ns()
    for worker, keys in sequences:
        for at in range(0, len(keys), batch):
            index.stored(worker, keys[at : at + batch])
    return process_time_ns() - begin


def measure_index(batch: int, seed: int) -> dict[str, object]:
    rng = random.Random(seed)
    prefixes, sequences = contents(rng)
    index = KvIndex()
    for worker in range(WORKERS):
        index.add_worker(worker)
    before = resident_bytes()
    store_ns = fill(index, sequences, batch)
    grown = resident_bytes() - before
    rng.shuffle(sequences)
    asked = sequences[:400]
    full = [keys for _, keys in asked]
    half = [prefixes[rng.randrange(GROUPS)] + fresh(rng, TAIL) for _ in range(400)]
    miss = [fresh(rng, SHARED + TAIL) for _ in range(400)]
    for worker, keys in asked[:50]:
        found = index.match(keys)
        assert found[worker] == 1000 and all(blocks >= 500 for blocks in found.values()), "wrong match"
    result: dict[str, object] = {
        "event_blocks": batch,
        "pairs": index.blocks(),
        "store_blocks_per_cpu_s": round(SEQUENCES * 1000 / store_ns * 1e9),
        "rss_bytes_per_pair": round(grown / index.blocks(), 1),
        "first_1000_full": timed(index.match, list(full[50:])),
        "find_1000_full": timed(index.match, list(full)),
        "find_1000_half": timed(index.match, list(half)),
        "find_1000_miss": timed(index.match, list(miss)),
        "find_1000_full_from_list": timed(index.match, [list(keys) for keys in full]),
        "find_3": timed(index.match, [keys[:3] for keys in full]),
    }
    removals = [(worker, keys[900:][::-1]) for worker, keys in asked[:200]]
    begin = process_time_ns()
    for worker, keys in removals:
        index.removed(worker, keys)
    result["remove_blocks_per_cpu_s"] = round(100 * len(removals) / (process_time_ns() - begin) * 1e9)
    result["after_evictions_1000"] = timed(index.match, list(full[:200]))
    return result


def measure_hasher(block_size: int, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    hasher = BlockHasher(block_size, b"\0" * 32, 151_936)
    prompts = [array("I", [int(151_936 * rng.random() ** 3) for _ in range(1024 * block_size)]) for _ in range(20)]
    figures = timed(lambda ids: hasher.extend(None, ids), list(prompts))
    return {"block_size": block_size, "us_per_block": round(figures["p50_us"] / 1024, 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    runs = [measure_index(batch, seed) for batch in (1000, 16)]
    worst = max(run[name]["p50_us"] for run in runs for name in ("find_1000_full", "find_1000_half", "find_1000_miss"))  # type: ignore[index]
    document = {
        "workers": WORKERS,
        "index": runs,
        "block_hash": [measure_hasher(size, seed) for size in (16, 32)],
        "peer_dynamo_radix_tree": DYNAMO,
        "target_find_1000_us": TARGET_US,
        "worst_find_1000_p50_us": worst,
        "ok": worst <= TARGET_US,
    }
    print(json.dumps(document, indent=2))
    return 0 if worst <= TARGET_US else 1


if __name__ == "__main__":
    sys.exit(main())
