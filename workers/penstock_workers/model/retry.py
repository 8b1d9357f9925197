"""When a source that did not answer is asked again.

Promise: pure; the number of tries without progress is bounded, and so is each wait.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retry:
    tries: int = 6  # in a row, without a byte gained
    first_s: float = 1.0
    longest_s: float = 30.0

    def wait_s(self, failures: int, u: float, asked_s: float | None = None) -> float | None:
        """Seconds until the next try after so many failures in a row, or None: give up. `u` in [0, 1) spreads fetchers that
        failed together; `asked_s` is what the source asked for."""
        if failures >= self.tries:
            return None
        backoff = min(self.longest_s, self.first_s * 2.0 ** (failures - 1)) * (0.5 + u / 2)
        return max(backoff, min(asked_s or 0.0, self.longest_s))
