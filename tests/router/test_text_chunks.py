import random
import tracemalloc

import pytest
from text_families import FAMILIES, ROOT, described, naive_keys, tokenizer_of, whole_ids

from penstock_policy.cache.hashes import BlockHasher
from penstock_router.text.chunks import MAX_WHO_PER_CHUNK, ChunkCache, Encoded
from penstock_router.text.cuts import random_text
from penstock_router.text.encoder import HfEncoder, choose_encoder
from penstock_router.text.errors import TextRefused

TOKENIZERS = {name: tokenizer_of(name) for name in FAMILIES}
LLAMA = TOKENIZERS["llama3"]
LORA = ("sql", "/adapters/sql")


def cache_of(name: str = "llama3", *, block: int = 4, room: int = 1 << 20, strides: tuple[int, int] = (8, 8)) -> ChunkCache:
    tokenizer = TOKENIZERS[name]
    hasher = BlockHasher(block, ROOT, tokenizer.get_vocab_size() + 8)
    return ChunkCache(HfEncoder(tokenizer), hasher, FAMILIES[name].classes, room, strides)


def expect_exact(
    found: Encoded, name: str, text: str, block: int, salt: str = "", adapter: tuple[str, str] | None = None
) -> None:
    ids = whole_ids(TOKENIZERS[name], text)
    assert found.ids == ids, repr(text)
    assert found.n == len(ids) // 4
    assert found.keys.tolist() == naive_keys(ids, block, salt, adapter), repr(text)


def conversations(rng: random.Random, specials: list[str], count: int) -> "list[str]":
    """Growing, truncated, forked and forgotten ones."""
    kept = [""] * 6
    out = []
    for _ in range(count):
        slot = rng.randrange(6)
        text = kept[slot] + "".join(random_text(rng, specials) for _ in range(rng.randint(1, 5)))
        if rng.random() < 0.3:
            text = text[: rng.randrange(len(text) + 1)]
        if rng.random() < 0.1 or len(text) > 1_500:
            text = kept[rng.randrange(6)][: rng.randrange(400)]
        kept[slot] = text
        out.append(text)
    return out


def run_family(name: str, count: int, seed: str) -> int:
    """Through caches of several shapes, small enough to evict all the time; returns the tokens reused."""
    rng = random.Random(seed)
    shapes = [(4, 1 << 16, (8, 8)), (5, 12_000, (40, 40)), (16, 1 << 20, (16, 120))]
    caches = [(block, cache_of(name, block=block, room=room, strides=strides)) for block, room, strides in shapes]
    specials = [entry["content"] for entry in described(name)["added_tokens"]][:6]
    reused = 0
    for text in conversations(rng, specials, count):
        salt = rng.choice(("", "", "tenant-a", "b"))
        adapter = LORA if rng.random() < 0.2 else None
        for block, cache in caches:
            found = cache.finish(cache.open(text), salt, adapter)
            expect_exact(found, name, text, block, salt, adapter)
            reused += found.reused
    assert sum(cache.stats.evicted for _, cache in caches) > 0 or not FAMILIES[name].classes
    return reused


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2", "bert", "metaspace", "gemma", "rstrip", "legacy"])
def test_conversations_are_encoded_and_hashed_as_a_whole(name: str) -> None:
    reused = run_family(name, 50, f"conversations of {name}")
    assert reused > 0 or not FAMILIES[name].classes


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_hundreds_of_conversations_are_encoded_and_hashed_as_a_whole(name: str) -> None:
    run_family(name, 350, f"many conversations of {name}")


TEXT = "Once upon a time there was a model that said the same again and again. " * 8


def test_what_was_seen_is_not_encoded_again() -> None:
    cache = cache_of()
    first = cache.finish(cache.open(TEXT))
    again = cache.finish(cache.open(TEXT + "And then it stopped."))
    assert first.reused == 0
    assert again.reused > first.n * 0.9
    assert cache.stats.reused_chars > len(TEXT) * 0.9
    assert cache.stats.encoded_chars < len(TEXT) * 1.2


def test_a_chunk_whose_cut_the_next_character_breaks_is_not_used() -> None:
    cache = cache_of(strides=(4, 4))
    cache.finish(cache.open("abcd efgh ijkl"))
    for text in ("abcdefghijklmnop", "abcd", "abcd\nefgh", "abcd efghijkl"):
        expect_exact(cache.finish(cache.open(text)), "llama3", text, 4)


def test_texts_that_part_ways_share_what_is_common() -> None:
    cache = cache_of()
    cache.finish(cache.open(TEXT + "first ending of the story, quite long"))
    chunks = cache.stats.chunks
    cache.finish(cache.open(TEXT + "second ending of the story, also long"))
    assert cache.stats.chunks - chunks <= 5


def test_prefix_and_suffix_ids_stand_around_the_text() -> None:
    cache = cache_of()
    around = (whole_ids(LLAMA, "<|endoftext|>"), whole_ids(LLAMA, "<|im_end|>"))
    for text in (TEXT, TEXT + "more", "", "x"):
        ids = around[0] + whole_ids(LLAMA, text) + around[1]
        found = cache.finish(cache.open(text, *around), "salt")
        assert (found.ids, found.n, found.keys.tolist()) == (ids, len(ids) // 4, naive_keys(ids, 4, "salt"))
    expect_exact(cache.finish(cache.open(TEXT)), "llama3", TEXT, 4)


def test_a_prefix_of_whole_blocks_is_hashed_too() -> None:
    cache = cache_of(block=2)
    prefix = whole_ids(LLAMA, "<|im_start|><|im_end|><|endoftext|>")
    for text in (TEXT, TEXT[:100]):
        assert cache.finish(cache.open(text, prefix)).keys.tolist() == naive_keys(prefix + whole_ids(LLAMA, text), 2)


def test_salts_and_adapters_change_keys_and_share_ids() -> None:
    cache = cache_of()
    plain = cache.finish(cache.open(TEXT))
    chunks = cache.stats.chunks
    for salt, adapter in (("a", None), ("b", None), ("", LORA), ("a", LORA), ("a", None)):
        found = cache.finish(cache.open(TEXT), salt, adapter)
        expect_exact(found, "llama3", TEXT, 4, salt, adapter)
        assert not set(found.keys) & set(plain.keys)
    assert cache.stats.chunks == chunks


def test_what_a_chunk_keeps_for_salts_is_bounded() -> None:
    cache = cache_of()
    sizes = []
    for number in range(4 * MAX_WHO_PER_CHUNK):
        expect_exact(cache.finish(cache.open(TEXT), f"tenant {number}"), "llama3", TEXT, 4, f"tenant {number}")
        sizes.append(cache.stats.bytes)
    assert sizes[-1] == sizes[MAX_WHO_PER_CHUNK]


def test_the_cache_stays_within_its_bytes_and_forgets_leaves_first() -> None:
    cache = cache_of(room=60_000)
    for number in range(60):
        cache.finish(cache.open(TEXT + f"ending number {number} " * 6))
        assert cache.stats.bytes <= 60_000
    assert cache.stats.evicted > 0
    assert cache.finish(cache.open(TEXT)).reused > 0


def test_a_cache_without_room_keeps_nothing_and_stays_exact() -> None:
    cache = cache_of(room=0)
    for _ in range(3):
        expect_exact(cache.finish(cache.open(TEXT)), "llama3", TEXT, 4)
    assert (cache.stats.chunks, cache.stats.bytes) == (0, 0)


def test_chunks_evicted_while_a_text_is_encoded_elsewhere_do_no_harm() -> None:
    cache = cache_of(room=60_000)
    cache.finish(cache.open(TEXT))
    waiting = cache.open(TEXT + "and this was waiting for a while, in another thread.")
    for number in range(60):
        cache.finish(cache.open(f"{number} something else entirely " * 10))
    assert cache.finish(cache.open(TEXT)).reused == 0
    waiting.encode()
    chunks, used = cache.stats.chunks, cache.stats.bytes
    expect_exact(cache.finish(waiting), "llama3", waiting.text, 4)
    assert (cache.stats.chunks, cache.stats.bytes) == (chunks, used)


def test_one_text_encoded_twice_at_a_time_is_kept_once() -> None:
    cache = cache_of()
    first, second = cache.open(TEXT), cache.open(TEXT)
    first.encode()
    second.encode()
    cache.finish(second)
    chunks = cache.stats.chunks
    expect_exact(cache.finish(first), "llama3", TEXT, 4)
    assert cache.stats.chunks == chunks


def test_a_refused_text_leaves_nothing_behind() -> None:
    cache = cache_of()
    with pytest.raises(TextRefused):
        cache.finish(cache.open(TEXT + "\ud800"))
    assert cache.stats.chunks == 0


def test_only_long_misses_ask_for_a_thread() -> None:
    cache = cache_of(strides=(256, 2048))
    long = TEXT * 20
    pending = cache.open(long)
    assert (pending.needs_thread, pending.miss_chars) == (True, len(long))
    pending.encode()
    assert not pending.needs_thread
    cache.finish(pending)
    assert not cache.open(long + TEXT).needs_thread
    assert not cache.open("short").needs_thread


def test_text_outside_ascii_asks_for_a_thread_earlier() -> None:
    tokenizer = TOKENIZERS["llama3"]
    encoder = choose_encoder(tokenizer, described("llama3")).encoder
    cache = ChunkCache(encoder, BlockHasher(16, ROOT, tokenizer.get_vocab_size()), "SNC", 1 << 20)
    assert not cache.open("a b " * 2_000).needs_thread
    assert cache.open("a b " * 2_000 + "中").needs_thread


def test_a_long_run_without_a_cut_is_one_piece() -> None:
    cache = cache_of()
    for text in ("x" * 5_000, "a " + "9" * 2_000, " " * 2_000):
        expect_exact(cache.finish(cache.open(text)), "llama3", text, 4)


@pytest.mark.slow
def test_the_bytes_counted_are_the_bytes_used() -> None:
    rng = random.Random(7)
    texts = ["".join(random_text(rng, []) for _ in range(1_500)) for _ in range(20)]
    texts = [text.encode("ascii", "ignore").decode() for text in texts]
    cache = cache_of(strides=(256, 2048), block=16)
    cache.finish(cache.open(TEXT))
    tracemalloc.start()
    for text in texts:
        cache.finish(cache.open(text))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 0.8 * used < cache.stats.bytes < 1.25 * used
