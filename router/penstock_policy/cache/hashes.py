"""Block hashes, byte for byte those of vLLM's prefix cache with `prefix_caching_hash_algo="sha256_cbor"`.

Promise: `BlockHasher.extend` returns what vLLM computes for the same token ids, salt and adapter.

A block's hash is SHA-256 over the canonical CBOR of `(parent hash, token ids, extra keys)`. Token ids are
translated by a table that holds every id's CBOR bytes, so a block costs one join and one digest.
"""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import repeat
from struct import Struct

HASH_BYTES = 32
_CBOR_NULL = b"\xf6"
_LOW_64 = Struct(">24xQ")


def key(block_hash: bytes) -> int:
    """The low 64 bits of a block hash: how vLLM's events, and the KV index, name a block."""
    return int.from_bytes(block_hash[-8:], "big")


def keys(block_hashes: Iterable[bytes]) -> "array[int]":
    """`key` of each hash, as array("Q")."""
    return array("Q", [low for (low,) in _LOW_64.iter_unpack(b"".join(block_hashes))])


def _head(major: int, value: int) -> bytes:
    """The head of a CBOR item: its major type and its value in the shortest form, as canonical CBOR demands."""
    if value < 24:
        return bytes((major << 5 | value,))
    for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if value < 1 << 8 * size:
            return bytes((major << 5 | code,)) + value.to_bytes(size, "big")
    raise ValueError(f"{value} does not fit into 64 bits")


def _text(value: str) -> bytes:
    data = value.encode()
    return _head(3, len(data)) + data


def _array(items: Sequence[bytes]) -> bytes:
    return _head(4, len(items)) + b"".join(items)


def _extra_keys(salt: str, adapter: tuple[str, str] | None) -> bytes:
    """vLLM's extra keys of one block. Its order: adapter before salt."""
    parts = []
    if adapter is not None:
        parts.append(_array([_text("lora"), _text(adapter[0]), _text(adapter[1])]))
    if salt:
        parts.append(_array([_text("cache_salt"), _text(salt)]))
    return _array(parts) if parts else _CBOR_NULL


class BlockHasher:
    """Hashes complete blocks of one model's token ids.

    `root` is the parent of a first block (`HashSettings.root`). Ids must lie in [0, vocab_size): the caller has
    checked them; an id above raises IndexError.
    """

    __slots__ = ("_block_head", "_table", "block_size", "root")

    def __init__(self, block_size: int, root: bytes, vocab_size: int) -> None:
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; it must be at least 1")
        if len(root) != HASH_BYTES:
            raise ValueError(f"root has {len(root)} bytes; a sha256_cbor root has {HASH_BYTES}")
        self.block_size = block_size
        self.root = root
        self._block_head = _head(4, block_size)
        self._table = [_head(0, token_id) for token_id in range(vocab_size)]

    def extend(
        self,
        parent: bytes | None,
        ids: "Sequence[int] | array[int]",
        salt: str = "",
        adapter: tuple[str, str] | None = None,
    ) -> list[bytes]:
        """Hashes of the complete blocks of `ids`, which follow the block that hashed to `parent`.

        No parent, or the root, means that `ids` begins the sequence: vLLM salts only that first block. An adapter
        (name, path) is part of every block. Ids beyond the last complete block are left out.
        """
        size = self.block_size
        first = parent is None or parent == self.root
        last = self.root if parent is None else parent
        # An array is read straight by map; one id is translated once, wherever its block begins.
        encoded = map(self._table.__getitem__, ids)
        columns = [encoded] * size
        tail = _extra_keys("", adapter)
        bodies = map(b"".join, zip(repeat(self._block_head), *columns, repeat(tail), strict=False))
        out: list[bytes] = []
        add = out.append
        # 83: array of three. 58 20: 32 bytes follow.
        if first and salt:
            plain = next(bodies, None)
            if plain is None:
                return out
            last = sha256(b"\x83\x58\x20" + last + plain[: -len(tail)] + _extra_keys(salt, adapter)).digest()
            add(last)
        for body in bodies:
            last = sha256(b"\x83\x58\x20" + last + body).digest()
            add(last)
        return out
