"""The rows that a connector adds to vLLM's transfer statistics; importing this needs no vLLM."""

from typing import Any

PULL_TOKENS, PULL_SECONDS, PULL_FAILED = "penstock_pull_tokens", "penstock_pull_seconds", "penstock_pull_failed"
HELD = "penstock_held"


def with_held(data: dict[str, Any] | None, held: int) -> dict[str, Any]:
    """How many ended requests keep their blocks; the front end takes it out before vLLM's own metrics see it."""
    return {**(data or {}), HELD: held}


def take_held(data: dict[str, Any] | None) -> tuple[dict[str, Any] | None, int | None]:
    """The statistics without it, and it; None where nothing was said of it."""
    if not data or HELD not in data:
        return data, None
    rest = dict(data)
    held = int(rest.pop(HELD))
    return rest or None, held


def pulls(data: dict[str, Any] | None) -> list[tuple[int, float, bool]]:
    """The rows in a scheduler's statistics."""
    if not data or not data.get(PULL_TOKENS):
        return []
    rows = zip(data[PULL_TOKENS], data[PULL_SECONDS], data[PULL_FAILED], strict=True)
    return [(int(tokens), float(seconds), bool(failed)) for tokens, seconds, failed in rows]
