"""When a failed call is sent again: gRPC A6, as pure functions.

Promise: 1. nothing is ever sent again once a token of the answer was received; 2. over time retries
are at most `refund` of successes, because each failure takes a token and retries stop at half;
3. no retry starts that could not end before the deadline.
"""

from dataclasses import dataclass, replace

PREVIOUS_ATTEMPTS = "x-penstock-previous-attempts"  # gRPC keeps its own name for this to itself
MAX_ATTEMPTS = 3
CAPACITY = 10.0
REFUND = 0.1
BASE_S = 0.1
CAP_S = 2.0


def marked(metadata: tuple[tuple[str, str], ...], before: int) -> tuple[tuple[str, str], ...]:
    """Metadata of a call after so many attempts of which nothing was received: its request id is then no second request."""
    return (*metadata, (PREVIOUS_ATTEMPTS, str(before))) if before else metadata


@dataclass(frozen=True, slots=True)
class Bucket:
    """Retry tokens of one client; starts full."""

    tokens: float = CAPACITY

    def failed(self) -> "Bucket":
        return replace(self, tokens=max(0.0, self.tokens - 1.0))

    def succeeded(self) -> "Bucket":
        return replace(self, tokens=min(CAPACITY, self.tokens + REFUND))

    def allows(self) -> bool:
        return self.tokens > CAPACITY / 2


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that ended with UNAVAILABLE."""

    attempt: int  # the first is 1
    begun: bool
    pushback_s: float | None  # how long the service asks to wait
    never_retry: bool


@dataclass(frozen=True, slots=True)
class Retry:
    """Wait so long, then send again; `wait_s` None: give up. `reason` says why."""

    wait_s: float | None
    reason: str


def decide(bucket: Bucket, failure: Failure, remaining_s: float | None, u: float) -> tuple[Bucket, Retry]:
    """`u` in [0, 1) is the jitter; `remaining_s` is the time to the deadline, None without one."""
    bucket = bucket.failed()
    if failure.begun:
        return bucket, Retry(None, "the answer had begun")
    if failure.never_retry:
        return bucket, Retry(None, "the service asked for no retry")
    if failure.attempt >= MAX_ATTEMPTS:
        return bucket, Retry(None, f"{MAX_ATTEMPTS} attempts failed")
    if not bucket.allows():
        return bucket, Retry(None, "too many recent calls failed")
    wait_s = failure.pushback_s
    if wait_s is None:
        wait_s = min(CAP_S, BASE_S * 2 ** (failure.attempt - 1)) * (0.8 + 0.4 * u)
    if remaining_s is not None and wait_s >= remaining_s:
        return bucket, Retry(None, "the deadline comes first")
    return bucket, Retry(wait_s, "unavailable")
