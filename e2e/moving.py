"""Sixteen kinds of streams that are moved while they run, and what each must be: what an undisturbed run gave.

Promise: a stream keeps when each of its tokens came, so that the pause at each seam between two legs is known.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from penstock_client import AsyncClient, PenstockError
from penstock_client.answer import LegPlacement, Placement

LENGTH = 320
BEGUN_S = 60
START_S = 420  # four engines on two cores that others may use
BLOCK = 32


def manifest(prefill: int, decode: int) -> str:
    return f"""
apiVersion: serving.penstock.dev/v1alpha1
kind: LLMService
metadata: {{name: tiny}}
spec:
  model: {{source: "penstock://tiny", name: tiny}}
  engine: {{device: cpu}}
  topology:
    mode: disaggregated
    prefill: {{replicas: {prefill}}}
    decode: {{replicas: {decode}}}
  slo:
    attainment: 0.99
    defaultClass: interactive
    classes: [{{name: interactive, ttft: 2s, tpot: 100ms, priority: 10}}]
  rollout: {{drainTimeout: 30s}}
"""


SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "flags": {"type": "array", "items": {"type": "boolean"}, "minItems": 90, "maxItems": 120},
            "name": {"type": "string", "minLength": 4, "maxLength": 12},
        },
        "required": ["flags", "name"],
        "additionalProperties": False,
    }
)


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    prompt: str
    sampling: dict[str, Any]


@dataclass(slots=True)
class Stream:
    """One answer as it came."""

    case: Case
    token_ids: list[int] = field(default_factory=list)
    came: list[float] = field(default_factory=list)  # monotonic seconds, per token
    text: str = ""
    finish: str = ""
    placement: Placement | None = None
    error: str = ""

    @property
    def told(self) -> tuple[list[int], str, str]:
        return self.token_ids, self.text, self.finish

    @property
    def legs(self) -> tuple[LegPlacement, ...]:
        return self.placement.legs if self.placement is not None else ()

    def seams(self, *kinds: str) -> list[tuple[LegPlacement, float, float]]:
        """Legs of these kinds, the pause before each one's first token, and when that token came."""
        found, before = [], 0
        for leg in self.legs:
            if leg.kind in kinds and leg.generated_tokens and before:
                found.append((leg, self.came[before] - self.came[before - 1], self.came[before]))
            before += leg.generated_tokens
        return found


def _sampling(kind: str, i: int) -> dict[str, Any]:
    match kind:
        case "greedy":
            return {"temperature": 0.0, "max_tokens": LENGTH, "ignore_eos": True}
        case "seeded":
            return {
                "temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 1000 + i, "presence_penalty": 0.6,
                "frequency_penalty": 0.4, "repetition_penalty": 1.1, "max_tokens": LENGTH, "ignore_eos": True,
            }  # fmt: skip
        case "schema":
            return {"temperature": 0.8, "seed": 7 + i, "max_tokens": LENGTH, "json_schema": SCHEMA}
        case _:
            return {"temperature": 0.7, "seed": 31 * i, "max_tokens": LENGTH, "ignore_eos": True}


def story(i: int) -> Case:
    kind = ("greedy", "seeded", "schema", "stops")[i % 4]
    words = random.Random(i).choices(["river", "mill", "the", "old", "stone", "and", "ran", "über", "wheel"], k=12 + 9 * (i % 7))
    return Case(f"{kind}-{i}", f"Story {i}: " + " ".join(words), _sampling(kind, i))


async def run_one(client: AsyncClient, case: Case, on_token: Callable[[], None] = lambda: None) -> Stream:
    got = Stream(case)
    try:
        async with client.stream(case.prompt, explain=True, timeout_s=120, **case.sampling) as deltas:
            async for delta in deltas:
                now = time.monotonic()
                got.token_ids += delta.token_ids
                got.came += [now] * len(delta.token_ids)
                got.text += delta.text
                got.finish = delta.finish_reason or got.finish
                got.placement = delta.placement or got.placement
                on_token()
    except PenstockError as error:
        got.error = f"{type(error).__name__}: {error}"
    return got


async def _expected(address: str, count: int) -> list[Stream]:
    async with AsyncClient(address) as client:
        plain = await asyncio.gather(*(run_one(client, story(i)) for i in range(count)))
        failed = [f"{one.case.name}: {one.error} after {len(one.token_ids)} tokens" for one in plain if one.error]
        assert not failed, failed
        cases = [_with_stop(one) if one.case.name.startswith("stops") else one.case for one in plain]
        return list(await asyncio.gather(*(run_one(client, case) for case in cases)))


def _with_stop(plain: Stream) -> Case:
    """A stop string that the answer first says after about two thirds of its text."""
    text = plain.text
    at = next(k for k in range(2 * len(text) // 3, len(text) - 6) if text.find(text[k : k + 6]) == k)
    return Case(plain.case.name, plain.case.prompt, plain.case.sampling | {"stop": ["never said", text[at : at + 6]]})


def expected(address: str, count: int) -> list[Stream]:
    """An undisturbed run of the cases, each with its answer."""
    streams = asyncio.run(_expected(address, count))
    failed = [f"{one.case.name}: {one.error} after {len(one.token_ids)} tokens" for one in streams if one.error]
    assert not failed, failed
    assert all(s.finish == "stop" for s in streams if s.case.name.startswith("stops"))
    return streams


@dataclass(slots=True)
class Round:
    """What one disturbance did."""

    streams: list[Stream] = field(default_factory=list)
    at: float = 0.0
    result: Any = None


async def _disturbed(address: str, cases: Sequence[Case], after: int, late: int, disturb: Callable[[], Any]) -> Round:
    done, ready = Round(), asyncio.Event()
    begun = len(cases) - late
    tokens = 0

    def on_token() -> None:
        nonlocal tokens
        tokens += 1
        if tokens >= after * begun:
            ready.set()

    async with AsyncClient(address) as client:
        tasks = [asyncio.create_task(run_one(client, case, on_token)) for case in cases[:begun]]
        try:
            await asyncio.wait_for(ready.wait(), BEGUN_S)
        except TimeoutError:
            came = [len(one.came) for one in (task.result() for task in tasks if task.done())]
            raise AssertionError(f"{tokens} tokens of {begun} streams after {BEGUN_S} s; ended: {came}") from None
        tasks += [asyncio.create_task(run_one(client, case)) for case in cases[begun:]]
        done.at = time.monotonic()
        done.result = await asyncio.to_thread(disturb)
        done.streams = list(await asyncio.gather(*tasks))
    return done


def disturbed(address: str, cases: Sequence[Case], disturb: Callable[[], Any], *, after: int = 25, late: int = 0) -> Round:
    """Runs the cases; `disturb` is called when each has about `after` tokens; the last `late` begin only then."""
    return asyncio.run(_disturbed(address, cases, after, late, disturb))


def pace(streams: Sequence[Stream]) -> str:
    """The time between tokens that no seam parts, so that a pause can be read in engine steps."""
    steps = []
    for one in streams:
        seams, before = set(), 0
        for leg in one.legs:
            seams.add(before)
            before += leg.generated_tokens
        steps += [b - a for i, (a, b) in enumerate(zip(one.came, one.came[1:], strict=False), 1) if i not in seams and b > a]
    return spread(steps)


def wrong(streams: Sequence[Stream], want: Sequence[Stream]) -> list[tuple[str, str, int, int]]:
    """Streams that are not what the undisturbed run gave: name, error, tokens, and where they part."""
    return [
        (got.case.name, got.error or got.finish, len(got.token_ids), _parts(got.token_ids, right.token_ids))
        for got, right in zip(streams, want, strict=True)
        if got.error or got.told != right.told
    ]


def _parts(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def spread(values: Sequence[float]) -> str:
    """Of seconds, in milliseconds."""
    if not values:
        return "none"
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"n={len(ordered)} p50={1e3 * median(ordered):.0f} ms p99={1e3 * p99:.0f} ms max={1e3 * ordered[-1]:.0f} ms"
