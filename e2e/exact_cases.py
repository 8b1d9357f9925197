"""Sixty requests whose answers one plain engine knows: lengths, seams and sampling that have broken continuation before.

Block multiples and their neighbours (stock vLLM dies or answers wrongly there), prompts that extend earlier ones (partial local
hits on the decode worker), greedy, seeded with penalties, JSON schema, stop strings, text of several bytes a character.
"""

import json
import random
from dataclasses import dataclass
from typing import Any

BLOCK = 32
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer"},
            "ok": {"type": "boolean"},
        },
        "required": ["name", "age", "ok"],
        "additionalProperties": False,
    }
)
EDGES = [m * BLOCK + d for m in range(1, 6) for d in (-2, -1, 0, 1, 2)]
OTHERS = [
    1,
    2,
    3,
    5,
    8,
    13,
    21,
    29,
    200,
    223,
    224,
    225,
    256,
    333,
    400,
    479,
    480,
    500,
    512,
    600,
    640,
    777,
    800,
    960,
    1000,
]
OTHERS += [1023, 1024, 1025, 1200, 1333, 1500, 1696, 1900, 1999, 2000]
LENGTHS = EDGES + OTHERS


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    token_ids: tuple[int, ...]
    sampling: dict[str, Any]  # names of the proto's Sampling, which are also vLLM's

    def for_reference(self) -> dict[str, Any]:
        return {"token_ids": list(self.token_ids), "sampling": self.sampling}


def _greedy(i: int, multibyte: list[int]) -> dict[str, Any]:
    return {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}


def _seeded(i: int, multibyte: list[int]) -> dict[str, Any]:
    return {
        "temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 1000 + i, "presence_penalty": 0.6, "frequency_penalty": 0.4,
        "repetition_penalty": 1.1, "max_tokens": 24, "min_tokens": 4,
    }  # fmt: skip


def _schema(i: int, multibyte: list[int]) -> dict[str, Any]:
    return {"temperature": 0.0, "max_tokens": 60, "json_schema": SCHEMA}


def _stops(i: int, multibyte: list[int]) -> dict[str, Any]:
    return {
        "temperature": 0.7,
        "seed": 7 * i,
        "max_tokens": 40,
        "stop": ["e", ". ", "the "][i % 3 :],
        "ignore_eos": True,
    }


def _bytes(i: int, multibyte: list[int]) -> dict[str, Any]:
    """Hot sampling over the whole vocabulary: single bytes and parts of characters come out."""
    return {"temperature": 2.0 if i % 2 else 1.6, "seed": 31 + i, "max_tokens": 24, "ignore_eos": True}


KINDS = {"greedy": _greedy, "seeded": _seeded, "schema": _schema, "stops": _stops, "bytes": _bytes}


def cases(vocab_text: list[int]) -> list[Case]:
    """`vocab_text`: ids of a long text. Every length once, kinds in turn; later cases extend earlier prompts by twos."""
    rng = random.Random(3)
    made: list[Case] = []
    families: list[list[int]] = []
    for i, length in enumerate(LENGTHS):
        kind = list(KINDS)[i % len(KINDS)]
        start = rng.randrange(len(vocab_text) - 2100)
        ids = vocab_text[start : start + length]
        if i % 2 and families:  # the prompt begins as an earlier one did: a local hit on both workers
            base = families[rng.randrange(len(families))][:length]
            ids = base + ids[: length - len(base)]
        families.append(ids)
        made.append(Case(f"{kind}-{length}", tuple(ids), KINDS[kind](i, vocab_text)))
    return made
