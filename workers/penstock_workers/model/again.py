"""Asking a source again, and doing without it.

Promise: as often as `retry` says and no longer; what was fetched before serves only where the source itself is away, and a
warning says so.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from penstock_workers.model.refused import SourceUnavailable
from penstock_workers.model.retry import Retry

log = logging.getLogger(__name__)

T = TypeVar("T")


def again(
    attempt: Callable[[], T],
    retry: Retry,
    sleep: Callable[[float], None],
    u: Callable[[], float],
    gained: Callable[[], int] = lambda: 0,
    over: Callable[[], bool] = lambda: False,
) -> T:
    """What `attempt` gives. A failure after which `gained` has grown counts as the first; none is repeated once it is `over`."""
    failures, had = 0, gained()
    while True:
        try:
            return attempt()
        except SourceUnavailable as error:
            have = gained()
            failures, had = (1 if have > had else failures + 1), max(have, had)
            wait = retry.wait_s(failures, u(), error.retry_after_s)
            if wait is None or over():
                raise
            log.warning("%s; again in %.1f s", error, wait)
            sleep(wait)


def last_fetched(kept: Path | None, error: SourceUnavailable) -> Path:
    if kept is None:
        raise error
    log.warning("serving the model as it was last fetched: %s", error)
    return kept


def asked_s(retry_after: str | None) -> float | None:
    """Of a Retry-After header in seconds; a date in it is not read."""
    return float(retry_after) if retry_after and retry_after.isdigit() else None
