"""Which worker holds which KV blocks, and the longest prefix of a prompt that each of them holds.

Promise: `match` is exact for any history of events, holes included. A worker's match is the number of leading
blocks that it holds; a block behind a hole does not count.

A block's entry is either a bit mask of its holders ("loose") or a span: an ordered run of blocks with one mask.
Two rules keep it exact:
1. A span's `keys` are exactly the blocks whose entry it is, so one comparison of arrays answers for all of them.
2. `match` may rearrange entries into spans (it alone sees blocks in their true order); it never changes a mask.

Events come mostly as whole chains, and evictions take a chain's tail first, so a prompt of 1,000 blocks crosses a
handful of spans. One owner, no I/O, synchronous.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import final

_MIN_SPAN = 4  # blocks; below, a span costs more than it saves
_MAX_SPAN = 1024  # blocks; bounds what dissolving or splitting one span costs
_MAX_GUESSED = 256  # blocks of a span that grows by guessing
_MERGE_PER_MATCH = 64  # blocks moved between spans by one match at most
_SWEEP_PER_EVENT = 512  # entries examined per event while a dropped worker's blocks are being forgotten


@final
class _Span:
    __slots__ = ("keys", "mask")

    def __init__(self, keys: "array[int]", mask: int) -> None:
        self.keys = keys
        self.mask = mask


_Entry = int | _Span


def _as_keys(keys: Iterable[int]) -> "array[int]":
    return keys if isinstance(keys, array) and keys.typecode == "Q" else array("Q", keys)


def _overlap(span: _Span, keys: "array[int]", at: int) -> int:
    """How many blocks of `keys` from `at` on are the first blocks of the span."""
    own = span.keys
    if own[0] != keys[at]:
        return 0
    size = min(len(own), len(keys) - at)
    asked = keys[at : at + size]
    if size != len(own):
        own = own[:size]
    if asked == own:
        return size
    low, high = 1, size
    while high - low > 1:
        middle = (low + high) >> 1
        if asked[low:middle] == own[low:middle]:
            low = middle
        else:
            high = middle
    return low


class KvIndex:
    """Worker slots are small ints that the owner hands out; keys are the low 64 bits of block hashes."""

    __slots__ = ("_bit", "_dead", "_entries", "_free", "_held", "_last", "_live", "_slot", "_sweep", "_sweeping")

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._bit: dict[int, int] = {}  # slot -> its bit
        self._slot: dict[int, int] = {}  # bit -> its slot
        self._held: dict[int, int] = {}  # bit -> blocks held
        self._last: dict[int, _Span] = {}  # slot -> the span that its last stored blocks made
        self._live = 0  # bits in use
        self._free: list[int] = []  # bits that occur in no mask
        self._dead = 0  # bits of dropped workers that masks may still contain
        self._sweeping = 0  # those that the sweep under way removes
        self._sweep: list[int] = []  # keys that it has yet to examine

    # -- workers

    def add_worker(self, slot: int) -> None:
        """Start with an empty cache; a slot that is known is cleared."""
        if slot in self._bit:
            self._retire(slot)
        bit = self._free.pop() if self._free else 1 << (self._live | self._dead | self._sweeping).bit_length()
        self._bit[slot] = bit
        self._slot[bit] = slot
        self._held[bit] = 0
        self._live |= bit

    def drop_worker(self, slot: int) -> None:
        if slot in self._bit:
            self._retire(slot)

    def cleared(self, slot: int) -> None:
        """The worker's cache is empty. Unknown slots are ignored, here and below: their worker is gone."""
        if slot in self._bit:
            self.add_worker(slot)

    def blocks(self) -> int:
        """(worker, block) pairs held."""
        return sum(self._held.values())

    def held(self, slot: int) -> int:
        """Blocks that this worker holds."""
        return self._held.get(self._bit.get(slot, 0), 0)

    # -- events

    def stored(self, slot: int, keys: Iterable[int]) -> None:
        """The worker holds these blocks; fastest where they are in chain order and come as array("Q")."""
        bit = self._bit.get(slot)
        if bit is None:
            return
        if self._sweep:
            self._sweep_some()
        batch = _as_keys(keys)
        entries = self._entries
        gained, at, end = 0, 0, len(batch)
        while at < end:
            entry = entries.get(batch[at])
            if type(entry) is _Span:
                run = _overlap(entry, batch, at)
                if entry.mask & bit:
                    at += run or 1
                elif run == 0:
                    self._dissolve(entry)
                else:
                    if run < len(entry.keys):
                        entry = self._split(entry, run)
                    entry.mask |= bit
                    gained += run
                    at += run
                continue
            run = self._loose_run(batch, at, entry)
            mask = (entry or 0) | bit
            if mask != entry:
                gained += self._put(batch[at : at + run], mask, slot)
            at += run
        self._held[bit] += gained

    def removed(self, slot: int, keys: Iterable[int]) -> None:
        """The worker no longer holds these blocks."""
        bit = self._bit.get(slot)
        if bit is None:
            return
        if self._sweep:
            self._sweep_some()
        batch = _as_keys(keys)
        entries = self._entries
        lost, at, end = 0, 0, len(batch)
        while at < end:
            key = batch[at]
            entry = entries.get(key)
            if type(entry) is _Span:
                if not entry.mask & bit:
                    at += 1
                    continue
                own = entry.keys
                if own[-1] == key and len(own) > 1:
                    own.pop()
                    entry = entry.mask
                elif own == batch[at : at + len(own)]:
                    self._without(entry, bit)
                    lost += len(own)
                    at += len(own)
                    continue
                else:
                    self._dissolve(entry)
                    entry = entry.mask
            if entry is not None and entry & bit:
                if entry == bit:
                    del entries[key]
                else:
                    entries[key] = entry ^ bit
                lost += 1
            at += 1
        self._held[bit] -= lost

    # -- the question

    def match(self, keys: Sequence[int]) -> dict[int, int]:
        """Leading blocks of `keys` that each worker holds; workers that do not hold the first are left out.

        array("Q") spares a conversion.
        """
        asked = _as_keys(keys)
        entries = self._entries
        out: dict[int, int] = {}
        alive = self._live
        before: _Span | None = None  # the span that ends right before `at`
        may_move = _MERGE_PER_MATCH
        at, end = 0, len(asked)
        while at < end:
            entry = entries.get(asked[at])
            if entry is None:
                break
            if type(entry) is _Span:
                mask = entry.mask
                run = _overlap(entry, asked, at)
                if run == 0:
                    self._dissolve(entry)
                    continue
                if run < len(entry.keys):
                    before = None
                else:
                    before, moved = self._merge(before, entry, may_move)
                    may_move -= moved
            else:
                mask = entry
                run = self._loose_run(asked, at, entry)
                before = self._learn(before, asked[at : at + run], mask)
            lost = alive & ~mask
            if lost:
                if at:
                    self._name(lost, at, out)
                alive ^= lost
                if not alive:
                    return out
            at += run
        if at:
            self._name(alive, at, out)
        return out

    def _name(self, bits: int, blocks: int, out: dict[int, int]) -> None:
        slots = self._slot
        while bits:
            bit = bits & -bits
            out[slots[bit]] = blocks
            bits ^= bit

    # -- layout

    def _loose_run(self, keys: "array[int]", at: int, entry: _Entry | None) -> int:
        """How many keys from `at` on have this same loose entry, or none where `entry` is None."""
        get = self._entries.get
        size, run, end = 8, 1, len(keys)
        while at + run < end:
            found = list(map(get, keys[at + run : at + run + size]))
            if found.count(entry) != len(found):
                for other in found:
                    if other != entry:
                        return run
                    run += 1
            run += len(found)
            size *= 2
        return run

    def _put(self, keys: "array[int]", mask: int, slot: int) -> int:
        """Give keys, which are in no span, this mask; how many distinct ones there are.

        A chain's events often come one after the other, so keys are guessed to go on where the slot's last ones ended.
        A wrong guess costs one dissolving.
        """
        entries = self._entries
        if len(keys) < _MIN_SPAN:
            for key in keys:
                entries[key] = mask
            return len(keys) if len(keys) < 2 else len(set(keys))
        last = self._last.get(slot)
        if last is not None and last.mask == mask and len(last.keys) + len(keys) <= _MAX_GUESSED and self._append(last, keys):
            return len(keys)
        if len(keys) > _MAX_SPAN:
            keys = array("Q", dict.fromkeys(keys))  # a key must not come into two spans
        distinct = 0
        for start in range(0, len(keys), _MAX_SPAN):
            part = keys[start : start + _MAX_SPAN]
            span = self._last[slot] = _Span(part, mask)
            fresh = dict.fromkeys(part, span)
            if len(fresh) != len(part):
                span.keys = array("Q", fresh)
            entries.update(fresh)
            distinct += len(fresh)
        return distinct

    def _learn(self, before: _Span | None, keys: "array[int]", mask: int) -> _Span | None:
        """Make loose blocks of one mask, in their true order, part of the span before them or a span of their own."""
        if before is not None and before.mask == mask and self._append(before, keys):
            return before
        if _MIN_SPAN <= len(keys) <= _MAX_SPAN:
            span = _Span(keys, mask)
            fresh = dict.fromkeys(keys, span)
            if len(fresh) == len(keys):
                self._entries.update(fresh)
                return span
        return None

    def _merge(self, before: _Span | None, span: _Span, may_move: int) -> tuple[_Span, int]:
        """The span that ends where `span` ends, now with the one before it where that is worth it; blocks moved."""
        size = len(span.keys)
        if before is None or before is span or before.mask != span.mask or size > may_move:
            return span, 0
        if not self._append(before, span.keys):
            return span, 0
        span.keys = array("Q")
        return before, size

    def _append(self, span: _Span, keys: "array[int]") -> bool:
        if len(span.keys) + len(keys) > _MAX_SPAN:
            return False
        fresh = dict.fromkeys(keys, span)
        if len(fresh) != len(keys):
            return False
        span.keys.extend(keys)
        self._entries.update(fresh)
        return True

    def _split(self, span: _Span, at: int) -> _Span:
        """Cut a span in two of the same mask and return the first; the shorter part moves."""
        own = span.keys
        if at * 2 < len(own):
            head = _Span(own[:at], span.mask)
            del own[:at]
            self._entries.update(dict.fromkeys(head.keys, head))
            return head
        tail = _Span(own[at:], span.mask)
        del own[at:]
        self._entries.update(dict.fromkeys(tail.keys, tail))
        return span

    def _dissolve(self, span: _Span) -> None:
        """Make a span's blocks loose. Left empty, it is still true to rule 1 for whoever remembers it."""
        self._entries.update(dict.fromkeys(span.keys, span.mask))
        span.keys = array("Q")

    def _without(self, span: _Span, bits: int) -> None:
        """Take holders from a whole span; without any left its blocks are forgotten."""
        span.mask &= ~bits
        if not span.mask:
            entries = self._entries
            for key in span.keys:
                del entries[key]
            span.keys = array("Q")

    # -- forgetting workers

    def _retire(self, slot: int) -> None:
        """Make the slot's bit mean nobody; masks lose it bit by bit, so that no event waits for a whole sweep."""
        bit = self._bit.pop(slot)
        self._last.pop(slot, None)
        del self._slot[bit]
        self._live ^= bit
        if not self._live:
            self._entries.clear()
            self._free.clear()
            self._sweep.clear()
            self._held.clear()
            self._dead = self._sweeping = 0
            return
        if self._held.pop(bit) == 0:
            self._free.append(bit)
            return
        self._dead |= bit
        if not self._sweep:
            self._start_sweep()

    def _start_sweep(self) -> None:
        self._sweeping, self._dead = self._dead, 0
        self._sweep = list(self._entries) if self._sweeping else []

    def _sweep_some(self) -> None:
        dead = self._sweeping
        entries = self._entries
        for key in self._sweep[-_SWEEP_PER_EVENT:]:
            entry = entries.get(key)
            if entry is None:
                continue
            if type(entry) is _Span:
                if entry.mask & dead:
                    self._without(entry, dead)
            elif entry & dead:
                if entry & ~dead:
                    entries[key] = entry & ~dead
                else:
                    del entries[key]
        del self._sweep[-_SWEEP_PER_EVENT:]
        if not self._sweep:
            while dead:
                bit = dead & -dead
                self._free.append(bit)
                dead ^= bit
            self._start_sweep()
