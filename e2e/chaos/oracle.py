"""Requests whose right answers are known before they are sent.

Promise: `Oracle.ask` is a pure function of its random generator and the number. The answer is the fake engine's function of
the prompt, told again here from the tokenizer: nothing of router or worker that could be wrong the same way is in between.
"""

import pydoc_data.topics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from chaos.verdict import Expected

from penstock_proto.v1.common_pb2 import Sampling
from penstock_proto.v1.inference_pb2 import GenerateRequest, TokenIds
from penstock_workers.engine.fake_answer import fake_answer, readable_ids
from penstock_workers.text import Tokens

Front = Literal["grpc", "http"]


@dataclass(frozen=True, slots=True)
class Mix:
    """What the requests are like."""

    http: float = 0.2  # share that goes through HTTP
    stops: float = 0.15  # share that ends at a stop string
    seeded: float = 0.3
    ids: float = 0.3  # share whose prompt is token ids
    prefixes: int = 12
    prefix_tokens: tuple[int, int] = (8, 480)
    tail_tokens: tuple[int, int] = (4, 60)
    max_tokens: tuple[int, int] = (12, 84)


@dataclass(frozen=True, slots=True)
class Ask:
    request_id: str
    front: Front
    prompt: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    as_ids: bool
    expected: Expected

    def message(self, request_id: str) -> GenerateRequest:
        request = GenerateRequest(model="tiny", request_id=request_id, sampling=self.sampling, explain=True)
        if self.as_ids:
            request.token_ids.CopyFrom(TokenIds(ids=self.prompt_ids))
        else:
            request.prompt = self.prompt
        return request

    def body(self) -> dict[str, object]:
        """Of POST /v1/completions."""
        sampling = self.sampling
        body: dict[str, object] = {
            "model": "tiny", "prompt": list(self.prompt_ids) if self.as_ids else self.prompt, "stream": True,
            "stream_options": {"include_usage": True}, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature,
        }  # fmt: skip
        if sampling.HasField("seed"):
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return body


def answer(ids: Sequence[int], spelled: Sequence[str], stops: Sequence[str]) -> Expected:
    """The tokens up to the one that completes a stop string first, and the text before it."""
    text = ""
    for count, piece in enumerate(spelled, start=1):
        before = len(text)
        text += piece
        found = [(at + len(stop), at) for stop in stops if (at := text.find(stop, max(0, before - len(stop) + 1))) >= 0]
        if found:
            return Expected(tuple(ids[:count]), text[: min(found)[1]], "stop")
    return Expected(tuple(ids), text, "length")


class Oracle:
    def __init__(self, model_dir: Path, mix: Mix = Mix()) -> None:
        self.mix = mix
        self.tokens = Tokens.load(str(model_dir))
        self.choices = readable_ids(self.tokens)
        self.spelling = {i: self.tokens.bytes_of(i).decode() for i in self.choices}
        source = "\n".join(pydoc_data.topics.topics.values())[:200_000]
        encoding = self.tokens.tokenizer.encode(source, add_special_tokens=False)
        self._source, self._offsets = source, encoding.offsets

    def _text(self, start: int, tokens: int) -> str:
        start %= len(self._offsets) - tokens
        return self._source[self._offsets[start][0] : self._offsets[start + tokens - 1][1]]

    def ask(self, rng: Random, number: int) -> Ask:
        mix = self.mix
        which = rng.randrange(mix.prefixes)
        prefix = self._text(which * 1009, Random(which).randint(*mix.prefix_tokens))
        prompt = f"{prefix} #{number} {self._text(rng.randrange(30_000), rng.randint(*mix.tail_tokens))}"
        prompt_ids = tuple(self.tokens.tokenizer.encode(prompt).ids)
        count = rng.randint(*mix.max_tokens)
        seed = rng.randrange(1, 1 << 31) if rng.random() < mix.seeded else 0
        sampling = Sampling(max_tokens=count, temperature=0.8 if seed else 0.0)
        if seed:
            sampling.seed = seed
        ids = fake_answer(prompt_ids, count, choices=self.choices, seed=seed)
        spelled = [self.spelling[i] for i in ids]
        if rng.random() < mix.stops:
            text = "".join(spelled)
            at = rng.randrange(len(text) // 3, max(len(text) // 3 + 1, len(text) - 6))
            sampling.stop.append(text[at : at + rng.randint(2, 6)])
        front: Front = "http" if rng.random() < mix.http else "grpc"
        return Ask(
            f"chaos-{number}", front, prompt, prompt_ids, sampling, rng.random() < mix.ids, answer(ids, spelled, sampling.stop)
        )
