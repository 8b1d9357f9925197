"""`penstock generate`: one answer, streamed; with --explain, why it ran where it ran."""

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, cast

from penstock_cli.output import Usage, print_json, seconds, table
from penstock_cli.service import connect
from penstock_client import Answer, Client, Delta, Options, Placement
from penstock_client.answer import fold


class Request(Options, total=False):
    """The SDK's keywords, with the prompt among them."""

    prompt: str


@dataclass(frozen=True, slots=True)
class Timed:
    """An answer and its times as this client saw them."""

    answer: Answer
    ttft_s: float
    tpot_s: float  # 0 where there was one token


def generate(arguments: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    as_json = arguments.output == "json"
    with connect(arguments) as client:
        timed = stream(client, _options(arguments, prompt), arguments.timeout, show=not as_json)
    if as_json:
        print_json(document(timed))
        return 0
    print()
    if arguments.explain:
        print("\n" + "\n".join(explain(timed)))
    return 0


def stream(client: Client, options: Request, timeout_s: float | None, *, show: bool) -> Timed:
    """The answer, printed as it comes where `show` says so."""
    given = cast(dict[str, Any], dict(options))
    prompt = given.pop("prompt", None)
    began_s = time.monotonic()
    deltas: list[Delta] = []
    first_s = last_s = began_s
    with client.stream(prompt, timeout_s=timeout_s, **given) as running:
        for delta in running:
            last_s = time.monotonic()
            if not deltas:
                first_s = last_s
            deltas.append(delta)
            if show:
                print(delta.text, end="", flush=True)
        answer = fold(deltas, running.request_id)
    further = max(answer.usage.completion_tokens, len(answer.token_ids)) - 1
    return Timed(answer, first_s - began_s, (last_s - first_s) / further if further > 0 else 0.0)


def _options(arguments: argparse.Namespace, prompt: str) -> Request:
    if arguments.max_tokens is not None and arguments.max_tokens < 1:
        raise Usage(f"--max-tokens: {arguments.max_tokens} must be at least 1")
    names = ("max_tokens", "temperature", "seed", "model", "service_class")
    given: dict[str, Any] = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    text = {"messages": [{"role": "user", "content": prompt}]} if arguments.chat else {"prompt": prompt}
    return cast(Request, given | text | {"explain": bool(arguments.explain)})


def document(timed: Timed) -> dict[str, Any]:
    """What `-o json` prints."""
    answer = timed.answer
    return {
        "request_id": answer.request_id,
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "usage": asdict(answer.usage),
        "placement": asdict(answer.placement) if answer.placement else None,
        "ttft_s": round(timed.ttft_s, 6),
        "tpot_s": round(timed.tpot_s, 6),
    }


def explain(timed: Timed) -> list[str]:
    """The placement: what was predicted beside what happened, and the legs."""
    placement = timed.answer.placement
    if placement is None:
        return ["the service returned no placement"]
    times = [
        ["ttft", seconds(placement.predicted_ttft_s), seconds(placement.ttft_s), seconds(timed.ttft_s)],
        ["tpot", seconds(placement.predicted_tpot_s), seconds(placement.tpot_s), seconds(timed.tpot_s)],
    ]
    return [
        f"placement  {placement.kind}, of {placement.candidates} considered",
        f"reason     {placement.reason}",
        "",
        *table(["", "predicted", "router saw", "client saw"], times),
        "",
        *_legs(placement),
    ]


def _legs(placement: Placement) -> list[str]:
    header = ["leg", "worker", "pool", "cached", "transferred", "computed", "generated", "outcome"]
    rows = [
        [
            leg.kind,
            leg.worker,
            leg.pool,
            str(leg.cached_tokens),
            str(leg.transferred_tokens),
            str(leg.computed_tokens),
            str(leg.generated_tokens),
            leg.outcome,
        ]
        for leg in placement.legs
    ]
    return table(header, rows)
