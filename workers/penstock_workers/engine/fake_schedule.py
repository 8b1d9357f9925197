"""The fake engine's scheduler: continuous batching, chunked prefill, priorities, preemption, as vLLM's.

Promise: `schedule` decides one step from what waits and runs; no clock, no I/O. A sequence that is preempted starts again from
its tokens, so its answer does not change.
"""

import heapq
from collections.abc import Iterable

from penstock_workers.config import FakeSettings
from penstock_workers.engine.fake_cache import BlockCache
from penstock_workers.engine.fake_sequence import FakeSequence

Work = list[tuple[FakeSequence, int]]  # tokens to compute


class FakeScheduler:
    def __init__(self, settings: FakeSettings, cache: BlockCache, max_model_len: int) -> None:
        self._settings = settings
        self._cache = cache
        self._max_model_len = max_model_len
        self._waiting: list[tuple[tuple[int, int], FakeSequence]] = []  # heap
        self.running: list[FakeSequence] = []
        self.pulling: set[FakeSequence] = set()
        self.preempted = 0
        self.freed = False  # KV was given up in the last `schedule`: a step without work is worth another try

    @property
    def has_work(self) -> bool:
        return bool(self.running or self._waiting)

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def add(self, sequence: FakeSequence) -> None:
        self.pulling.discard(sequence)
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def drop(self, sequence: FakeSequence) -> None:
        """The sequence is gone; its references to KV are given back."""
        sequence.gone = True
        if sequence in self.running:
            self.running.remove(sequence)
        self.pulling.discard(sequence)
        self._cache.free(sequence.blocks)
        sequence.blocks = []

    def clear(self) -> None:
        self.running.clear()
        self._waiting.clear()
        self.pulling.clear()

    def schedule(self) -> tuple[Work, list[FakeSequence]]:
        """The step's work, and sequences whose KV must be pulled first; running before waiting."""
        budget = self._settings.max_batched_tokens
        work: Work = []
        before = self.preempted
        self.freed = False
        for sequence in sorted(self.running, key=_order):
            if sequence.preempted or not budget:
                continue
            tokens = min(sequence.pending, budget)
            if self._make_room(sequence, tokens, work):
                budget -= tokens
                work.append((sequence, tokens))
        pulls = self._admit(work, budget) if self.preempted == before else []
        return work, pulls

    def _make_room(self, sequence: FakeSequence, tokens: int, work: Work) -> bool:
        while not self.grow(sequence, tokens):
            victim = max(self.running, key=_order)
            self._preempt(victim)
            work[:] = [(s, n) for s, n in work if s is not victim]
            if victim is sequence:
                return False
        return True

    def _admit(self, work: Work, budget: int) -> list[FakeSequence]:
        pulls: list[FakeSequence] = []
        while self._waiting and budget and len(self.running) + len(self.pulling) < self._settings.max_running:
            sequence = self._waiting[0][1]
            if sequence.gone:
                heapq.heappop(self._waiting)
                continue
            pull = sequence.kv_params is not None
            if not sequence.blocks and not self._find_prefix(sequence):
                break
            tokens = sequence.pending if pull else min(sequence.pending, budget)
            if not self.grow(sequence, tokens):
                if not self.running and not self.pulling:
                    self._forget(s for _, s in self._waiting)
                break
            heapq.heappop(self._waiting)
            sequence.preempted = False
            if pull:
                self.pulling.add(sequence)
                pulls.append(sequence)
                continue
            self.running.append(sequence)
            budget -= tokens
            work.append((sequence, tokens))
        return pulls

    def _find_prefix(self, sequence: FakeSequence) -> bool:
        """Takes the cached prefix, but for the last token, which must be computed."""
        size = self._settings.block_size
        found = self._cache.match(sequence.ids.tobytes(), sequence.salt, (len(sequence.ids) - 1) // size)
        new = -(-len(sequence.ids) // size) - len(found)
        if new > self._cache.available - sum(not b.refs for b in found):
            return False
        self._cache.take(found)
        sequence.blocks = found
        sequence.complete = len(found)
        sequence.computed = len(found) * size
        if not sequence.context_given:
            sequence.cached = sequence.computed
        return True

    def grow(self, sequence: FakeSequence, tokens: int) -> bool:
        """Blocks for so many more tokens, and for those that the step may add to them."""
        extra = self._settings.tokens_per_step - 1 if tokens == sequence.pending else 0
        length = min(sequence.computed + tokens + extra, self._max_model_len)
        need = -(-length // self._settings.block_size) - len(sequence.blocks)
        if need <= 0:
            return True
        new = self._cache.allocate(need)
        if new is None:
            return False
        sequence.blocks += new
        return True

    def keep(self, sequence: FakeSequence) -> None:
        """Puts blocks that became complete into the cache."""
        complete = sequence.computed // self._settings.block_size
        if complete > sequence.complete:
            self._cache.complete(sequence.blocks, sequence.ids, sequence.complete, complete, sequence.salt)
            sequence.complete = complete

    def _preempt(self, sequence: FakeSequence) -> None:
        self.preempted += 1
        self.running.remove(sequence)
        self._forget((sequence,))
        sequence.preempted = True
        self.add(sequence)

    def _forget(self, sequences: Iterable[FakeSequence]) -> None:
        """Frees the KV of sequences that do not run: they compute it again."""
        for sequence in sequences:
            self._cache.free(sequence.blocks)
            sequence.blocks, sequence.complete, sequence.computed = [], 0, 0
        self.freed = True


def _order(sequence: FakeSequence) -> tuple[int, int]:
    return sequence.order
