"""Token ids and block keys of a text at the cost of what has not been seen before.

Promise: `Encoded` is what a whole encode and vLLM's block hashing give, whatever was cached, evicted or running
meanwhile.

A trie holds texts as chunks that end at safe cuts (`cuts`). A chunk is found by comparing its characters, never a
digest of them, so nothing can be mixed up. Two rules keep it right:
1. Where a chunk ends depends only on the text before that end and on one character behind it. The characters of the
   next chunk prove the cut before it; behind the last chunk found the cut is checked.
2. A path is touched deepest chunk first, so the least recently used chunk is always a leaf.
One owner; synchronous. Only `Pending.encode` may run in another thread.
"""

import re
import sys
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from penstock_policy.cache.hashes import keys as keys_of

from .cuts import cut_pattern
from .encoder import INLINE_CHARS, Encoder

Adapter = tuple[str, str]  # name and path, as vLLM hashes them
Who = tuple[str, Adapter | None]  # cache salt and adapter: they change hashes, not ids

MAX_WHO_PER_CHUNK = 8  # who differs by tenant: what one chunk keeps for them is bounded
NODE_BYTES = 800  # of a chunk besides its text, ids and keys; measured
WHO_BYTES = 300
STRIDES = (256, 2048)  # a chunk's least characters: the first, the most; between them a sixteenth of the position


class Hasher(Protocol):
    """`penstock_policy.cache.hashes.BlockHasher`."""

    block_size: int
    root: bytes

    def extend(self, parent: bytes | None, ids: "array[int]", salt: str, adapter: Adapter | None) -> list[bytes]: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized prompt."""

    ids: bytes  # uint32, little-endian: StartLeg.token_ids as it is
    n: int  # tokens
    keys: "array[int]"  # one 64-bit key per complete block, for KvIndex.match; typecode Q
    reused: int = 0  # tokens that came from the cache


@dataclass(slots=True)
class ChunkStats:
    """What the cache has done; counters only grow."""

    chunks: int = 0
    bytes: int = 0
    evicted: int = 0
    reused_chars: int = 0
    encoded_chars: int = 0


class _Chunk:
    __slots__ = ("attached", "children", "ids", "keys", "last", "others", "recent", "size", "tail", "text", "tokens", "up")

    def __init__(self, up: "_Chunk | None", text: str, ids: bytes, block_size: int) -> None:
        left: array[int] = array("I", ids) if up is None else up.tail + array("I", ids)
        self.up = up
        self.text = text
        self.ids = ids
        self.tokens: int = len(ids) // 4 + (0 if up is None else up.tokens)  # up to this chunk's end
        self.tail: array[int] = left[len(left) - self.tokens % block_size :]  # ids behind the last complete block
        self.keys: bytes | None = None  # of the blocks that this chunk completes, without salt and adapter
        self.last = b""  # hash of the last complete block, beside keys
        self.others: dict[Who, tuple[bytes, bytes]] | None = None  # the same for salts and adapters
        self.children: dict[str, _Chunk] = {}
        self.recent: _Chunk | None = None  # the child found last: compared before anything is looked up
        self.attached = False  # in the trie
        self.size = 0  # bytes


class Pending:
    """A text whose known part has been found. `encode` does the rest and touches nothing shared."""

    __slots__ = ("_encoder", "encoded", "path", "root", "spans", "suffix", "text")

    def __init__(
        self, encoder: Encoder, root: _Chunk, path: list[_Chunk], text: str, spans: list[tuple[int, int]], suffix: bytes
    ) -> None:
        self._encoder = encoder
        self.root = root
        self.path = path
        self.text = text
        self.spans = spans  # to encode: new chunks, then the rest of the text
        self.suffix = suffix
        self.encoded: list[bytes] | None = None

    @property
    def miss_chars(self) -> int:
        return len(self.text) - self.spans[0][0]

    @property
    def needs_thread(self) -> bool:
        """Whether `encode` would hold an event loop up."""
        limit = self._encoder.inline_chars if self.text.isascii() else INLINE_CHARS
        return self.encoded is None and self.miss_chars > limit

    def encode(self) -> None:
        """Raises TextRefused."""
        text, encoder = self.text, self._encoder
        self.encoded = [encoder(text[start:end]) if start < end else b"" for start, end in self.spans]


class ChunkCache:
    """Of one tokenizer; `classes` are its safe cuts."""

    def __init__(
        self, encoder: Encoder, hasher: Hasher, classes: str, max_bytes: int, strides: tuple[int, int] = STRIDES
    ) -> None:
        self.stats = ChunkStats()
        self._strides = strides
        self._encoder = encoder
        self._hasher = hasher
        self._cut = cut_pattern(classes)
        self._max_bytes = max_bytes
        self._roots: dict[bytes, _Chunk] = {}
        self._used: OrderedDict[_Chunk, None] = OrderedDict()  # least recently used first

    def open(self, text: str, prefix: bytes = b"", suffix: bytes = b"", encoder: Encoder | None = None) -> Pending:
        """`prefix` and `suffix` are ids that stand outside the text. With an encoder of its own nothing is cached."""
        root = self._root(prefix)
        end = len(text)
        cut = self._cut if encoder is None else None
        if cut is None:
            self.stats.encoded_chars += end
            return Pending(encoder or self._encoder, root, [], text, [(0, end)], suffix)
        node, at, path, starts = root, 0, [], text.startswith
        find = cut.search
        first, most = self._strides
        while True:
            step = at >> 4
            stop = at + (first if step < first else most if step > most else step)
            if stop >= end:
                break
            child = node.recent
            if child is not None and starts(child.text, at):
                at += len(child.text)
            else:
                found = find(text, stop)
                if found is None:
                    break
                child = node.children.get(text[at : found.start()])
                if child is None:
                    break
                node.recent = child
                at = found.start()
            node = child
            path.append(child)
        if path and cut.match(text, at) is None:
            at -= len(path.pop().text)
        self.stats.reused_chars += at
        self.stats.encoded_chars += end - at
        return Pending(self._encoder, root, path, text, self._spans(cut, text, at), suffix)

    def _spans(self, cut: re.Pattern[str], text: str, at: int) -> list[tuple[int, int]]:
        spans = []
        end = len(text)
        first, most = self._strides
        while True:
            stop = at + min(max(at >> 4, first), most)
            found = cut.search(text, stop) if stop < end else None
            if found is None:
                spans.append((at, end))
                return spans
            spans.append((at, found.start()))
            at = found.start()

    def finish(self, pending: Pending, salt: str = "", adapter: Adapter | None = None) -> Encoded:
        """Encodes what `Pending.encode` has not, hashes, keeps the new chunks."""
        if pending.encoded is None:
            pending.encode()
        assert pending.encoded is not None
        root, path, text = pending.root, pending.path, pending.text
        reused = path[-1].tokens if path else 0
        # What was found may have been evicted while another thread encoded: then nothing can hang below it.
        keeps = not path or path[-1].attached
        *chunks, rest = pending.encoded
        node = path[-1] if path else root
        for (start, stop), ids in zip(pending.spans, chunks, strict=False):
            node = self._below(node, text[start:stop], ids)
            path.append(node)
        rest += pending.suffix
        id_parts, key_parts, last = self._gather(root, path, (salt, adapter) if salt or adapter else None)
        id_parts.append(rest)
        left = node.tail + array("I", rest)
        if len(left) >= self._hasher.block_size:
            key_parts.append(keys_of(self._hasher.extend(last, left, salt, adapter)).tobytes())
        if keeps:
            self._keep(path)
        return Encoded(b"".join(id_parts), node.tokens + len(rest) // 4, array("Q", b"".join(key_parts)), reused)

    def _root(self, prefix: bytes) -> _Chunk:
        root = self._roots.get(prefix)
        if root is None:
            root = self._roots[prefix] = _Chunk(None, "", prefix, self._hasher.block_size)
            root.attached = True
        return root

    def _below(self, up: _Chunk, text: str, ids: bytes) -> _Chunk:
        return up.children.get(text) or _Chunk(up, text, ids, self._hasher.block_size)

    # -- hashes

    def _gather(self, root: _Chunk, path: list[_Chunk], who: Who | None) -> tuple[list[bytes], list[bytes], bytes]:
        """Ids and keys along a path, and the hash of its last complete block."""
        id_parts, key_parts, last = [], [], self._hasher.root
        for node in (root, *path):
            id_parts.append(node.ids)
            if who is None:
                keys = node.keys
                if keys is None:
                    keys, node.last = self._extend(node, last, "", None)
                    node.keys = keys
                last = node.last
            else:
                keys, last = self._keys_for(node, last, who)
            key_parts.append(keys)
        return id_parts, key_parts, last

    def _keys_for(self, node: _Chunk, parent: bytes, who: Who) -> tuple[bytes, bytes]:
        others = node.others
        if others is None:
            others = node.others = {}
        found = others.get(who)
        if found is None:
            if len(others) >= MAX_WHO_PER_CHUNK:
                self._weigh(node, -WHO_BYTES - len(others.pop(next(iter(others)))[0]))
            found = others[who] = self._extend(node, parent, *who)
            self._weigh(node, WHO_BYTES + len(found[0]))
        return found

    def _extend(self, node: _Chunk, parent: bytes, salt: str, adapter: Adapter | None) -> tuple[bytes, bytes]:
        """Keys of the blocks that the chunk completes, and the hash of the last complete block at its end."""
        ids = array("I", node.ids)
        hashes = self._hasher.extend(parent, node.up.tail + ids if node.up is not None else ids, salt, adapter)
        return (keys_of(hashes).tobytes(), hashes[-1]) if hashes else (b"", parent)

    # -- memory

    def _weigh(self, node: _Chunk, size: int) -> None:
        node.size += size
        if node.attached:
            self.stats.bytes += size

    def _keep(self, path: list[_Chunk]) -> None:
        used, stats = self._used, self.stats
        for node in path:
            if not node.attached:
                assert node.up is not None
                node.up.children[node.text] = node
                node.up.recent = node
                node.attached = True
                node.size += NODE_BYTES + sys.getsizeof(node.text) + len(node.ids) + len(node.keys or b"")
                stats.bytes += node.size
                stats.chunks += 1
        for node in reversed(path):
            used[node] = None
            used.move_to_end(node)
        while stats.bytes > self._max_bytes and used:
            node, _ = used.popitem(last=False)
            up = node.up
            assert up is not None and not node.children
            del up.children[node.text]
            if up.recent is node:
                up.recent = None
            node.attached = False
            stats.bytes -= node.size
            stats.chunks -= 1
            stats.evicted += 1
