"""The KV index against a set of keys per worker."""

import random
from array import array
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_policy.cache import index as index_module
from penstock_policy.cache.index import KvIndex, _Span

LENGTH = 30
# Chains that fork from the first one after so many blocks; a key stands for its whole prefix.
FORKS = (0, 0, 7, 15, 29)
CHAINS = [[(at + 1) if at < fork else (chain * 1000 + at + 1) for at in range(LENGTH)] for chain, fork in enumerate(FORKS)]
SLOTS = range(4)
SMALL = {"_MIN_SPAN": 2, "_MAX_SPAN": 6, "_MAX_GUESSED": 5, "_MERGE_PER_MATCH": 5, "_SWEEP_PER_EVENT": 3}

slots = st.sampled_from(list(SLOTS))
pieces = st.builds(
    lambda chain, a, b, order: _piece(CHAINS[chain], a, b, order),
    st.integers(0, len(CHAINS) - 1),
    st.integers(0, LENGTH),
    st.integers(0, LENGTH),
    st.sampled_from(["forward", "forward", "backward", "doubled", "gaps"]),
)
loose = st.lists(st.sampled_from([k for chain in CHAINS for k in chain]), max_size=12)
operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["stored", "stored", "stored", "removed"]), slots, pieces | loose),
        st.tuples(st.just("match"), st.just(0), st.integers(0, len(CHAINS) - 1).map(CHAINS.__getitem__) | loose),
        st.tuples(st.sampled_from(["cleared", "drop", "add"]), slots, st.just([])),
    ),
    max_size=45,
)


def _piece(chain, a, b, order):
    piece = chain[min(a, b) : max(a, b)]
    if order == "backward":
        return piece[::-1]
    if order == "doubled":
        return piece + piece
    return piece[::2] if order == "gaps" else piece


class Naive:
    def __init__(self):
        self.held = {}

    def match(self, keys):
        out = {}
        for slot, held in self.held.items():
            count = next((at for at, key in enumerate(keys) if key not in held), len(keys))
            if count:
                out[slot] = count
        return out


def expect_consistent(index):
    """Rule 1 of the module: a span's keys are exactly the entries that are it."""
    spans = {}
    for key, entry in index._entries.items():
        mask = entry.mask if isinstance(entry, _Span) else entry
        assert mask, "a key without holders"
        assert not any(mask & free for free in index._free), "a freed bit is in use"
        if isinstance(entry, _Span):
            spans.setdefault(id(entry), (entry, set()))[1].add(key)
    for span, members in spans.values():
        assert len(span.keys) == len(members) and set(span.keys) == members


def apply(index, naive, kind, slot, keys):
    if kind == "stored":
        index.stored(slot, array("Q", keys) if len(keys) % 2 else keys)
        if slot in naive.held:
            naive.held[slot].update(keys)
    elif kind == "removed":
        index.removed(slot, keys)
        if slot in naive.held:
            naive.held[slot].difference_update(keys)
    elif kind == "cleared":
        index.cleared(slot)
        if slot in naive.held:
            naive.held[slot] = set()
    elif kind == "drop":
        index.drop_worker(slot)
        naive.held.pop(slot, None)
    elif kind == "add":
        index.add_worker(slot)
        naive.held[slot] = set()
    else:
        assert index.match(keys) == naive.match(keys)


@pytest.mark.slow
@pytest.mark.parametrize("constants", [{"_MIN_SPAN": 4}, SMALL], ids=["as shipped", "small spans"])
@given(operations)
@settings(max_examples=120, deadline=None)
def test_any_history_matches_as_sets_of_keys_do(constants, history):
    with mock.patch.multiple(index_module, **constants):
        index, naive = KvIndex(), Naive()
        for slot in SLOTS[:3]:
            apply(index, naive, "add", slot, [])
        for operation in history:
            apply(index, naive, *operation)
        expect_consistent(index)
        for _ in range(2):  # the second time on the layout that the first has learned
            for chain in CHAINS:
                assert index.match(chain) == naive.match(chain)
        expect_consistent(index)
        assert index.blocks() == sum(map(len, naive.held.values()))
        assert all(index.held(slot) == len(held) for slot, held in naive.held.items())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_long_histories_of_conversations_match_as_sets_do(seed):
    with mock.patch.multiple(index_module, **SMALL if seed % 2 else {"_SWEEP_PER_EVENT": 20}):
        run_conversations(random.Random(seed))


def run_conversations(rng):
    index, naive = KvIndex(), Naive()
    for slot in SLOTS:
        apply(index, naive, "add", slot, [])
    chains = [[rng.getrandbits(64) for _ in range(40)] for _ in range(12)]
    for turn in range(1500):
        chain = chains[rng.randrange(len(chains))]
        slot = rng.choice(SLOTS)
        if rng.random() < 0.3:
            chain.extend(rng.getrandbits(64) for _ in range(rng.randrange(1, 60)))
        if rng.random() < 0.05:
            fork = chain[: rng.randrange(1, len(chain))]
            chains[rng.randrange(len(chains))] = fork + [rng.getrandbits(64) for _ in range(20)]
        held = naive.match(chain).get(slot, 0)
        if rng.random() < 0.6:
            apply(index, naive, "stored", slot, chain[held:])
        elif rng.random() < 0.5:
            apply(index, naive, "removed", slot, chain[max(0, held - rng.randrange(1, 30)) : held][::-1])
        elif rng.random() < 0.1:
            apply(index, naive, rng.choice(["cleared", "drop", "add"]), slot, [])
        apply(index, naive, "match", 0, chain)
        if turn % 100 == 0:
            expect_consistent(index)


def test_a_block_behind_a_hole_does_not_count():
    index = KvIndex()
    index.add_worker(3)
    index.stored(3, range(1, 101))
    index.removed(3, [50])
    assert index.match(range(1, 101)) == {3: 49}
    index.stored(3, [50])
    assert index.match(range(1, 101)) == {3: 100}


def test_events_of_unknown_workers_are_ignored():
    index = KvIndex()
    index.stored(1, [1, 2])
    index.removed(1, [1])
    index.cleared(1)
    index.drop_worker(1)
    assert index.match([1, 2]) == {} and index.blocks() == 0


def test_a_dropped_workers_blocks_are_forgotten_in_the_end():
    index = KvIndex()
    index.add_worker(0)
    index.add_worker(1)
    index.stored(0, range(5000))
    index.stored(1, range(2500, 7500))
    index.cleared(0)
    assert index.match(range(5000)) == {}
    for _ in range(20):
        index.stored(1, [2500])
    assert len(index._entries) == 5000 and index.blocks() == 5000
    expect_consistent(index)


def test_a_slot_that_returns_starts_empty():
    index = KvIndex()
    for slot in (0, 1):
        index.add_worker(slot)
        index.stored(slot, range(10))
    index.drop_worker(0)
    index.add_worker(0)
    assert index.match(range(10)) == {1: 10}
    index.stored(0, range(4))
    assert index.match(range(10)) == {0: 4, 1: 10}
