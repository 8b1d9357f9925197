"""A client of the service on the test node: `python -m kube.node_ask first|both HOST`.

Promise: `first` begins before the service serves and prints, as JSON, when the first token came; `both` asks by the SDK and by
the OpenAI-compatible API and prints what each answered.
"""

import json
import sys
import time
from collections.abc import Sequence

PROMPT = "Once upon a time there was a captain who lived by the frozen river with a little dog"
QUESTION = "What is the capital of France?"
_GIVE_UP_S = 900.0


def first(host: str) -> dict[str, float]:
    from penstock_client import Client, PenstockError

    end = time.monotonic() + _GIVE_UP_S
    while time.monotonic() < end:
        try:
            with Client(f"{host}:9000") as client:
                for delta in client.stream(PROMPT, max_tokens=4, temperature=0):
                    if delta.token_ids:
                        return {"first_token": time.time()}
        except PenstockError:
            time.sleep(0.2)  # no router yet, or it held the request as long as it holds requests
    raise SystemExit(f"no token in {_GIVE_UP_S:.0f} s")


def both(host: str) -> dict[str, object]:
    import openai

    from penstock_client import Client

    with Client(f"{host}:9000") as client:
        answer = client.generate(PROMPT, max_tokens=24, temperature=0, ignore_eos=True)
        usage = answer.usage
    with openai.OpenAI(base_url=f"http://{host}:8000/v1", api_key="none") as http:
        chat = http.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": QUESTION}], max_tokens=24, temperature=0
        )
        models = [one.id for one in http.models.list()]
    return {
        "text": answer.text, "tokens": len(answer.token_ids), "transferred": usage.transferred_tokens,
        "prompt": usage.prompt_tokens, "chat": chat.choices[0].message.content, "models": models,
    }  # fmt: skip


def main(words: Sequence[str]) -> int:
    what, host = words
    print(json.dumps(first(host) if what == "first" else both(host)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
