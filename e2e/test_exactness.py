"""Through prefill and decode workers, every answer is the one a single plain engine gives."""

import json
import os
import pydoc_data.topics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from exact_cases import Case, cases
from rig import ROOT, TINY
from service import Service
from tokenizers import Tokenizer

from penstock_client import Client

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.slow]


def all_cases() -> list[Case]:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    text = "\n".join(pydoc_data.topics.topics.values())[:60_000] + " café naïve 東京 和 🙂 über " * 40
    return cases(tokenizer.encode(text, add_special_tokens=False).ids)


def reference(chosen: list[Case], dtype: str, folder: Path) -> list[dict[str, Any]]:
    target = folder / f"reference-{dtype}.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "e2e/reference_engine.py"), str(TINY), dtype, str(target)],
        input=json.dumps([c.for_reference() for c in chosen]), text=True, capture_output=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    answers: list[dict[str, Any]] = json.loads(target.read_text())
    return answers


def ask(client: Client, case: Case) -> Any:
    return client.generate(token_ids=list(case.token_ids), explain=True, timeout_s=120, **case.sampling)


def test_every_answer_through_two_workers_is_the_single_engines(service: Service, tmp_path: Path) -> None:
    chosen = all_cases() if os.environ.get("PENSTOCK_FULL") else all_cases()[::2]
    expected = reference(chosen, "float32", tmp_path)
    wrong, kinds, usage = [], Counter[str](), Counter[str]()
    with Client(service.grpc) as client:
        for case, want in zip(chosen, expected, strict=True):
            got = ask(client, case)
            kinds[got.placement.kind] += 1
            for key in ("prompt_tokens", "cached_tokens", "transferred_tokens", "computed_tokens"):
                usage[key] += getattr(got.usage, key)
            if list(got.token_ids) != want["token_ids"] or got.text != want["text"]:
                wrong.append((case.name, want["text"], got.text, want["token_ids"], list(got.token_ids)))
    print(f"\n{len(chosen)} answers, {len(chosen) - len(wrong)} exact; placements {dict(kinds)}; tokens {dict(usage)}")
    assert wrong == []
    assert kinds["disaggregated"] >= 0.8 * len(chosen)
    assert usage["transferred_tokens"] > 0
    assert usage["prompt_tokens"] == sum(usage[k] for k in ("cached_tokens", "transferred_tokens", "computed_tokens"))


def test_a_chats_second_turn_finds_its_first_in_the_cache(service: Service) -> None:
    first = [{"role": "user", "content": "Tell me about a river, a mill and a penstock. " * 6}]
    with Client(service.grpc) as client:
        one = client.generate(messages=first, max_tokens=20, temperature=0)
        turns = [*first, {"role": "assistant", "content": one.text}, {"role": "user", "content": "And then?"}]
        two = client.generate(messages=turns, max_tokens=8, temperature=0)
    # The text of the first answer may tokenize in another way at its very end: count the shared prompt's full blocks.
    assert two.usage.cached_tokens >= (one.usage.prompt_tokens - 3) // 32 * 32
