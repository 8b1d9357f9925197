"""The fake engine's paged KV cache: reference counts, prefix reuse, LRU eviction, vLLM's block hashes.

Promise: a cached prefix is found without hashing it again (blocks hang in a trie of their token bytes), a block is hashed
once when it is complete, and `ops` tells every change in order: replaying it gives exactly `cached_keys`.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable

from penstock_policy.cache.hashes import BlockHasher, key
from penstock_workers.engine.protocol import KvOp


class Block:
    """One KV block. `place` is where it hangs in the trie while its content may be reused."""

    __slots__ = ("hash", "key", "place", "refs")

    def __init__(self) -> None:
        self.refs = 1
        self.key: int | str = 0
        self.hash = b""
        self.place: tuple[int | str, bytes] | None = None


class BlockCache:
    """All blocks of one engine. Without a hasher blocks are numbered, and nothing is reported."""

    def __init__(self, blocks: int, block_size: int, hasher: BlockHasher | None) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._bytes = 4 * block_size
        self._hasher = hasher
        self._trie: dict[tuple[int | str, bytes], Block] = {}
        self._idle: OrderedDict[Block, None] = OrderedDict()  # complete, unreferenced, oldest first
        self._blank = blocks  # neither referenced nor holding content
        self._ops: list[tuple[str, list[int]]] = []
        self._numbers = 0

    @property
    def used(self) -> int:
        """Blocks that somebody references."""
        return self.blocks - self._blank - len(self._idle)

    @property
    def usage(self) -> float:
        return self.used / self.blocks

    @property
    def available(self) -> int:
        return self._blank + len(self._idle)

    def match(self, data: bytes, salt: str, limit: int) -> list[Block]:
        """The longest cached prefix of token bytes, at most `limit` blocks; not referenced yet."""
        found: list[Block] = []
        parent: int | str = f"salt:{salt}" if salt else 0
        size, trie = self._bytes, self._trie
        for start in range(0, limit * size, size):
            block = trie.get((parent, data[start : start + size]))
            if block is None:
                break
            found.append(block)
            parent = block.key
        return found

    def take(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            if not block.refs:
                del self._idle[block]
            block.refs += 1

    def allocate(self, count: int) -> list[Block] | None:
        """New blocks with a reference each, or None: then nothing changed."""
        if count > self.available:
            return None
        while self._blank < count:
            self._evict()
        self._blank -= count
        return [Block() for _ in range(count)]

    def _evict(self) -> None:
        block, _ = self._idle.popitem(last=False)
        assert block.place is not None
        del self._trie[block.place]
        self._note("removed", [block.key])  # type: ignore[list-item]
        self._blank += 1

    def free(self, blocks: list[Block]) -> None:
        """Gives references back; a sequence's end is evicted before its start."""
        for block in reversed(blocks):
            block.refs -= 1
            if not block.refs:
                if block.place is None:
                    self._blank += 1
                else:
                    self._idle[block] = None

    def complete(self, blocks: list[Block], ids: "array[int]", first: int, last: int, salt: str) -> None:
        """Blocks first..last-1 of a sequence are computed: they can be reused from now on."""
        parent = blocks[first - 1] if first else None
        size = self.block_size
        span = ids[first * size : last * size]
        data = span.tobytes()
        if self._hasher is not None:
            hashes = self._hasher.extend(parent.hash if parent else None, span, salt)
        up: int | str = parent.key if parent else (f"salt:{salt}" if salt else 0)
        stored: list[int] = []
        for i, block in enumerate(blocks[first:last]):
            place = (up, data[i * self._bytes : (i + 1) * self._bytes])
            twin = self._trie.get(place)
            if self._hasher is not None:
                block.hash = hashes[i]
                block.key = key(hashes[i])
            else:
                self._numbers += 1
                block.key = twin.key if twin else self._numbers
            if twin is None:
                block.place = place
                self._trie[place] = block
                stored.append(block.key)  # type: ignore[arg-type]
            up = block.key
        self._note("stored", stored)

    def clear(self) -> None:
        """Forgets all content; referenced blocks stay with their sequences."""
        self._blank += len(self._idle)
        self._idle.clear()
        for block in self._trie.values():
            block.place = None
        self._trie.clear()
        self._note("cleared", [])

    def _note(self, kind: str, keys: list[int]) -> None:
        if self._hasher is None or (kind != "cleared" and not keys):
            return
        if self._ops and self._ops[-1][0] == kind != "cleared":
            self._ops[-1][1].extend(keys)
        else:
            self._ops.append((kind, keys))

    def drain_ops(self) -> list[KvOp]:
        if not self._ops:
            return []
        ops, self._ops = self._ops, []
        return [KvOp(kind, array("Q", keys)) for kind, keys in ops]  # type: ignore[arg-type]

    def cached_keys(self) -> set[int]:
        """What a router that followed every op believes this cache to hold."""
        return {block.key for block in self._trie.values()}  # type: ignore[misc]
