"""Block hashes against cbor2 and hashlib, as vLLM computes them."""

import hashlib
from array import array

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_policy.cache.hashes import BlockHasher, key, keys

VOCAB = 70_000
ROOT = hashlib.sha256(cbor2.dumps("vllm-none-hash", canonical=True)).digest()
HASHERS = {size: BlockHasher(size, ROOT, VOCAB) for size in (1, 16, 23, 24, 32, 300)}
boundary_ids = st.sampled_from([0, 23, 24, 255, 256, 65_535, 65_536, VOCAB - 1])
token_ids = st.lists(st.integers(0, VOCAB - 1) | boundary_ids, max_size=100)
adapters = st.none() | st.tuples(st.text(max_size=30), st.text(max_size=30))


def naive(size, parent, ids, salt="", adapter=None):
    out = []
    for start in range(0, len(ids) - len(ids) % size, size):
        extra = [("lora", *adapter)] if adapter else []
        if salt and start == 0 and parent == ROOT:
            extra.append(("cache_salt", salt))
        block = (parent, tuple(ids[start : start + size]), tuple(extra) or None)
        parent = hashlib.sha256(cbor2.dumps(block, canonical=True)).digest()
        out.append(parent)
    return out


@given(st.sampled_from(sorted(HASHERS)), token_ids, st.text(max_size=40), adapters)
@settings(max_examples=150, deadline=None)
def test_hashes_are_those_of_canonical_cbor_and_sha256(size, ids, salt, adapter):
    ids = ids * (1 + size // 60)
    hashed = HASHERS[size].extend(None, ids, salt, adapter)
    assert hashed == naive(size, ROOT, ids, salt, adapter)
    assert hashed == HASHERS[size].extend(ROOT, array("I", ids), salt, adapter)


@given(token_ids, token_ids, st.text(max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_chain_that_is_extended_equals_one_hashed_whole(first, second, salt):
    hasher = HASHERS[16]
    first = first[: len(first) // 16 * 16]
    begun = hasher.extend(None, first, salt)
    if begun:
        assert begun + hasher.extend(begun[-1], second, salt) == hasher.extend(None, first + second, salt)


def test_hashes_are_those_that_vllm_computed():
    # Recorded from vLLM 0.32.0: hash_block_tokens with generate_block_hash_extra_keys, blocks range(0, 16) and
    # range(80_000, 80_016), without extra keys and with adapter ("sql", "/models/sql") and salt "tenant-a".
    assert ROOT.hex() == "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0"
    hasher = BlockHasher(16, ROOT, 80_016)
    ids = [*range(16), *range(80_000, 80_016)]
    assert [h.hex() for h in hasher.extend(None, ids)] == [
        "dc918a88b139e5afe60b88eda27508d4aee16c10fdc354791efea06206ac0749",
        "4bc4297612027d8f40468f26fb420a08b3e3fb6d6626a327554f75f5bc073bd3",
    ]
    assert [h.hex() for h in hasher.extend(None, ids, "tenant-a", ("sql", "/models/sql"))] == [
        "4cfc6ec188151637e13ac30fbbbc3419728ec43e12a4bad464a150d61cb611f5",
        "f0c901e831020298dc53cd1746ec16dacced3f55db7492c5ff39199f851e8df9",
    ]


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=20))
@settings(max_examples=40, deadline=None)
def test_keys_are_the_low_64_bits(hashes):
    expected = [int.from_bytes(h, "big") & (1 << 64) - 1 for h in hashes]
    assert list(keys(hashes)) == expected == [key(h) for h in hashes]


def test_too_few_ids_make_no_block():
    assert HASHERS[16].extend(None, [1] * 15, "salt") == []
    assert keys([]) == array("Q")


def test_an_id_beyond_the_vocabulary_is_refused():
    with pytest.raises(IndexError):
        HASHERS[16].extend(None, [VOCAB] * 16)


def test_settings_that_cannot_be_vllms_are_refused():
    with pytest.raises(ValueError, match="32"):
        BlockHasher(16, b"short", 10)
    with pytest.raises(ValueError, match="block_size is 0"):
        BlockHasher(0, ROOT, 10)
