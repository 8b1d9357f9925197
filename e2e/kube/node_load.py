"""A steady load of streams against a service, each compared with the answer it must give: `python -m kube.node_load OPTIONS`.

Promise: an answer is right where its tokens are those of the undisturbed service, no more, no fewer; each stream is one line of
JSON on stdout, with its legs; a file that appears ends the load when the running streams have ended.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Deterministic: the greedy answer. Long prompts, so that a leg that moves has KV to pull.
PROMPTS = [
    f"{start} and every morning the captain, the owl and the little dog walked to the frozen river to look for the lantern that "
    f"was lost there when the {thing} was young, and each of them told the others a story about it"
    for start in ("Once upon a time there was a ship", "In the far north there was a lake", "A long time ago there was a king")
    for thing in ("queen", "fox")
]
_PATIENCE_S = 120.0
Over = Callable[[], bool]


async def answered(client: Any, prompt: str, tokens: int) -> tuple[tuple[int, ...], Any, float]:
    """The token ids, the placement, and the seconds to the first of them."""
    ids: list[int] = []
    placement, begun, first_s = None, time.monotonic(), 0.0
    async for delta in client.stream(
        prompt, max_tokens=tokens, temperature=0, ignore_eos=True, explain=True, timeout_s=_PATIENCE_S
    ):
        first_s = first_s or time.monotonic() - begun
        ids += delta.token_ids
        placement = delta.placement or placement
    return tuple(ids), placement, first_s


async def said(client: Any, prompt: str, tokens: int) -> str:
    """By the OpenAI-compatible API."""
    stream = await client.completions.create(
        model="tiny", prompt=prompt, max_tokens=tokens, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])


async def over_grpc(address: str, name: str, tokens: int, right: dict[str, Any], over: Over) -> None:
    from penstock_client import AsyncClient, PenstockError

    number = 0
    async with AsyncClient(address) as client:
        while not over():
            prompt = PROMPTS[number % len(PROMPTS)]
            number += 1
            begun, found = time.time(), {}
            try:
                ids, placement, first_s = await answered(client, prompt, tokens)
            except PenstockError as error:
                found = {"error": f"{type(error).__name__}: {error}"}
            else:
                found = {"right": ids == right[prompt][0], "tokens": len(ids), "first_s": round(first_s, 3)}
                found["legs"] = [(leg.kind, leg.transferred_tokens, leg.computed_tokens) for leg in placement.legs]
                if not found["right"]:
                    found["differs_at"] = next(
                        (n for n, (a, b) in enumerate(zip(ids, right[prompt][0], strict=False)) if a != b), -1
                    )
            tell(name, begun, found)


async def over_http(url: str, name: str, tokens: int, right: dict[str, Any], over: Over) -> None:
    import openai

    number = 0
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=_PATIENCE_S) as client:
        while not over():
            prompt = PROMPTS[number % len(PROMPTS)]
            number += 1
            begun = time.time()
            try:
                text = await said(client, prompt, tokens)
            except (openai.OpenAIError, OSError) as error:
                found: dict[str, Any] = {"error": f"{type(error).__name__}: {error}"}
            else:
                found = {"right": text == right[prompt][1], "tokens": tokens}
            tell(name, begun, found)


def tell(name: str, begun: float, found: dict[str, Any]) -> None:
    print(json.dumps({"stream": name, "begun": begun, "ended": time.time(), **found}), flush=True)


async def load(host: str, streams: int, tokens: int, stop: Path) -> None:
    import openai

    from penstock_client import AsyncClient

    right: dict[str, Any] = {}
    async with (
        AsyncClient(f"{host}:9000") as client,
        openai.AsyncOpenAI(base_url=f"http://{host}:8000/v1", api_key="none") as http,
    ):
        for prompt in PROMPTS:
            ids, _, _ = await answered(client, prompt, tokens)
            right[prompt] = (ids, await said(http, prompt, tokens))
    print(json.dumps({"ready": len(right)}), flush=True)
    async with asyncio.TaskGroup() as group:
        for number in range(streams):
            group.create_task(over_grpc(f"{host}:9000", f"grpc-{number}", tokens, right, stop.exists))
        group.create_task(over_http(f"http://{host}:8000/v1", "http", tokens, right, stop.exists))


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m kube.node_load", description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--streams", type=int, default=3, help="over gRPC at a time; one more is over HTTP")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--stop", type=Path, required=True, help="file that ends the load when it appears")
    given = parser.parse_args(words)
    asyncio.run(load(given.host, given.streams, given.tokens, given.stop))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
