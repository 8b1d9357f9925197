"""CPU microseconds from text to token ids and block keys, beside a whole `tokenizers` encode with cbor2 hashing.

Promise: every timed answer is compared with the whole encode's ids, and with block hashes made by cbor2.
Prints one JSON document. Texts are this Python's standard library, cut into chats; the measured part of a prompt
has not been seen before, the reused part exactly once.
"""

import hashlib
import json
import random
import statistics
import sys
import sysconfig
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
from tokenizers import Tokenizer

from penstock_router.text import TextModel

MODEL = Path(__file__).resolve().parents[1] / "workers/penstock_workers/tiny/model"
BLOCK_SIZE = 16
ROOT = hashlib.sha256(cbor2.dumps("0", canonical=True)).digest()
SIZES = (50, 500, 4_000, 16_000)
REUSE = (0.0, 0.5, 0.8, 0.95)
GOALS_US = {50: 60, 500: 250, 4_000: 800, 16_000: 2_500}  # at 0.8


def corpus() -> tuple[str, str]:
    """Two halves without a common file: one to warm up with, one to measure with."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [f.read_text(encoding="utf-8", errors="replace") for f in files]
    return "".join(texts[0::2]), "".join(texts[1::2])


def chat(rng: random.Random, source: str, chars: int) -> str:
    """About so many characters of turns."""
    parts: list[str] = []
    left = chars
    while left > 0:
        size = min(rng.choice((400, 900, 2_000, 6_000)), left)
        at = rng.randrange(len(source) - size)
        role = ("user", "assistant")[len(parts) & 1]
        parts.append(f"<|{role}|>\n{source[at : at + size]}\n")
        left -= len(parts[-1])
    return "".join(parts)[:chars]


def whole(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """Ids and block keys as one whole encode and cbor2 make them."""
    ids = tokenizer.encode(text).ids
    keys, parent = [], ROOT
    for start in range(0, len(ids) - BLOCK_SIZE + 1, BLOCK_SIZE):
        block = (parent, tuple(ids[start : start + BLOCK_SIZE]), None)
        parent = hashlib.sha256(cbor2.dumps(block, canonical=True)).digest()
        keys.append(int.from_bytes(parent[-8:], "big"))
    return ids, keys


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time_ns()
    value = call()
    return (time.process_time_ns() - start) / 1e3, value


def summary(values: list[float]) -> dict[str, float]:
    return {"min": round(min(values), 1), "median": round(statistics.median(values), 1)}


def measure(files: dict[str, bytes], tokenizer: Tokenizer, halves: tuple[str, str], tokens: int, reuse: float) -> dict[str, Any]:
    rng = random.Random(f"{tokens} {reuse}")
    known, fresh = halves
    model = TextModel.load(files, BLOCK_SIZE, ROOT)
    for _ in range(40):
        model.encode_prompt(chat(rng, known, 40_000))  # words that any traffic knows
    sample = fresh[:200_000]
    chars = int(tokens * len(sample) / len(tokenizer.encode(sample).ids))
    rounds = 40 if tokens < 1_000 else 24
    ours, theirs = [], []
    for _ in range(rounds):
        seen = chat(rng, fresh, int(chars * reuse))
        model.encode_prompt(seen + chat(rng, fresh, chars - len(seen)))
        text = seen + chat(rng, fresh, chars - len(seen))
        cost, encoded = timed(lambda text=text: model.encode_prompt(text))
        ours.append(cost)
        cost, (ids, keys) = timed(lambda text=text: whole(tokenizer, text))
        theirs.append(cost)
        if encoded.ids != array("I", ids).tobytes() or encoded.keys.tolist() != keys:
            raise AssertionError(f"{tokens} tokens, reuse {reuse}: not what a whole encode gives")
    row = {"tokens": tokens, "reuse": reuse, "cpu_us": summary(ours[2:]), "whole_cpu_us": summary(theirs[2:])}
    return {**row, "goal_us": GOALS_US[tokens]} if reuse == 0.8 else row


def render_cost(files: dict[str, bytes]) -> dict[str, float] | None:
    if "tokenizer_config.json" not in files and "chat_template.jinja" not in files:
        return None
    model = TextModel.load(files, BLOCK_SIZE, ROOT)
    messages = [{"role": ("user", "assistant")[i & 1], "content": "x" * 2_000} for i in range(7)]
    return summary([timed(lambda: model.render_chat(messages))[0] for _ in range(50)])


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else MODEL
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "config.json")
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    halves = corpus()
    load_us, model = timed(lambda: TextModel.load(files, BLOCK_SIZE, ROOT))
    out = {
        "block_size": BLOCK_SIZE,
        "cut_classes": model.cut_classes,
        "encoder": model.encoder_name,
        "load_cpu_s": round(load_us / 1e6, 3),
        "render_7_messages_cpu_us": render_cost(files),
        "rows": [measure(files, tokenizer, halves, tokens, reuse) for tokens in SIZES for reuse in REUSE],
        "equal_to_whole_encode": True,
    }
    print(json.dumps(out, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
