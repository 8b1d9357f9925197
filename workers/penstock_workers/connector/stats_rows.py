"""The rows that a connector adds to vLLM's transfer statistics; importing this needs no vLLM."""

from typing import Any

PULL_TOKENS, PULL_SECONDS, PULL_FAILED = "penstock_pull_tokens", "penstock_pull_seconds", "penstock_pull_failed"


def pulls(data: dict[str, Any] | None) -> list[tuple[int, float, bool]]:
    """The rows in a scheduler's statistics."""
    if not data or not data.get(PULL_TOKENS):
        return []
    rows = zip(data[PULL_TOKENS], data[PULL_SECONDS], data[PULL_FAILED], strict=True)
    return [(int(tokens), float(seconds), bool(failed)) for tokens, seconds, failed in rows]
