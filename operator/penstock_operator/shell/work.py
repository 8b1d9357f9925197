"""The deduplicating queue of keys, as a state machine.

Promise: a key is worked on by one worker at a time; a key that is added while it is worked on is worked on again; a key that
failed waits longer each time, and success forgets it. Clock and randomness are arguments.
"""

import heapq
from dataclasses import dataclass, field

from penstock_operator.shell.ports import Key

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 60.0


@dataclass(slots=True)
class Work:
    due: dict[Key, float] = field(default_factory=dict)
    running: set[Key] = field(default_factory=set)
    failures: dict[Key, int] = field(default_factory=dict)
    # Every due key that is not running, once at its time; entries whose time is no longer the key's are passed over.
    _order: list[tuple[float, Key]] = field(default_factory=list)

    def add(self, key: Key, at_s: float) -> None:
        """Due at `at_s`, or earlier if it was. An event does not wait for the back-off: what failed may now succeed."""
        if key not in self.due or at_s < self.due[key]:
            self.due[key] = at_s
            heapq.heappush(self._order, (at_s, key))

    def take(self, now_s: float) -> Key | None:
        """The key that has been due for longest and is not being worked on."""
        at_s = self.next_s()
        if at_s is None or at_s > now_s:
            return None
        _, key = heapq.heappop(self._order)
        del self.due[key]
        self.running.add(key)
        return key

    def next_s(self) -> float | None:
        """When `take` has something next, as far as is known."""
        while self._order:
            at_s, key = self._order[0]
            if self.due.get(key) == at_s and key not in self.running:
                return at_s
            heapq.heappop(self._order)
        return None

    def done(self, key: Key, now_s: float, again_in_s: float | None) -> None:
        self._release(key)
        self.failures.pop(key, None)
        if again_in_s is not None:
            self.add(key, now_s + again_in_s)

    def failed(self, key: Key, now_s: float, u: float, at_least_s: float = 0.0) -> float:
        """Gives the delay until the next try; `u` in [0, 1) spreads keys that failed together."""
        self._release(key)
        count = self.failures.get(key, 0)
        self.failures[key] = count + 1
        delay = min(FIRST_DELAY_S * 2.0 ** min(count, 20), LONGEST_DELAY_S) * (0.5 + u / 2)
        delay = max(delay, at_least_s)
        self.add(key, now_s + delay)
        return delay

    def _release(self, key: Key) -> None:
        self.running.discard(key)
        if key in self.due:
            heapq.heappush(self._order, (self.due[key], key))

    def depth(self) -> int:
        return len(self.due) + len(self.running)
