import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_families import CORPUS, FAMILIES, LLAMA3, QWEN2, described, tokenizer_of, whole_ids

from penstock_router.text import encoder as encoders
from penstock_router.text.cuts import random_text
from penstock_router.text.encoder import (
    ALPHABET,
    ASCII,
    HfEncoder,
    WordMemo,
    choose_encoder,
    differing_probes,
    imitated,
    translate,
)
from penstock_router.text.errors import TextRefused
from penstock_router.text.pretokens import GPT2_PATTERN

WORDS = [name for name, family in FAMILIES.items() if family.encoder == "words"]


def memo_of(name: str) -> WordMemo:
    memo, reason = encoders._word_memo(tokenizer_of(name), described(name))
    assert memo is not None, reason
    return memo


@pytest.mark.parametrize("name", FAMILIES)
def test_words_are_remembered_where_that_is_proved_exact(name: str) -> None:
    memo, reason = encoders._word_memo(tokenizer_of(name), described(name))
    assert ("words" if memo else "tokenizers") == FAMILIES[name].encoder
    assert bool(reason) != bool(memo)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_encoder_gives_the_ids_of_the_library(name: str) -> None:
    rng = random.Random(f"encoder of {name}")
    tokenizer = tokenizer_of(name)
    encoder = memo_of(name) if name in WORDS else HfEncoder(tokenizer)
    specials = [entry["content"] for entry in described(name)["added_tokens"]]
    for text in [*CORPUS, "", *(random_text(rng, specials, longest=30) for _ in range(100))]:
        assert encoder(text) == whole_ids(tokenizer, text)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDS)
def test_remembered_words_agree_on_thousands_of_texts(name: str) -> None:
    specials = [entry["content"] for entry in described(name)["added_tokens"]]
    memo = memo_of(name)
    assert [differing_probes(tokenizer_of(name), memo, specials, seed) for seed in range(4)] == [0] * 4


LLAMA_MEMO, LLAMA = memo_of("llama3"), tokenizer_of("llama3")


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from(ALPHABET), max_size=60))
def test_texts_of_the_alphabet_are_imitated_exactly(text: str) -> None:
    assert imitated(text)
    assert LLAMA_MEMO(text) == whole_ids(LLAMA, text)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_is_encoded_exactly(text: str) -> None:
    assert LLAMA_MEMO(text) == whole_ids(LLAMA, text)


@pytest.mark.parametrize("char", ["ſ", "\x85", "\u0301", "中", "\u2126", "가", "\u1680"])
def test_a_character_that_engines_may_read_differently_goes_to_the_library(char: str) -> None:
    assert not imitated(f"a{char}b")


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, LLAMA3, QWEN2])
def test_a_translated_pattern_makes_words_without_gaps(pattern: str) -> None:
    text = "".join(ASCII) + " don't  stop\r\n\n 1234 [x]"
    words = re.compile(translate(pattern, ASCII), re.ASCII).findall(text)
    assert "".join(words) == text


def test_a_pattern_that_cannot_be_translated_is_told() -> None:
    with pytest.raises(re.error):
        translate(r"[\S]", ASCII)


def test_a_class_that_is_empty_on_the_alphabet_matches_nothing() -> None:
    assert re.findall(translate(r"\p{M}|[\p{Lt}a]", ASCII), "abc") == ["a"]


@pytest.mark.parametrize("encoder", [HfEncoder(LLAMA), LLAMA_MEMO], ids=["library", "words"])
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "é\ud83d\ude00"])
def test_a_lone_surrogate_is_refused(encoder: encoders.Encoder, text: str) -> None:
    with pytest.raises(TextRefused, match="surrogate"):
        encoder(text)


def test_an_encoder_that_differs_on_a_probe_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_PROBES", 50)
    monkeypatch.setattr(encoders, "translate", lambda pattern, alphabet: r"(?s:.)")
    choice = choose_encoder(tokenizer_of("llama3"), described("llama3"))
    assert isinstance(choice.encoder, HfEncoder)
    assert "probes differ" in choice.reason


def test_added_tokens_are_found_longest_first() -> None:
    tokenizer = tokenizer_of("llama3")
    tokenizer.add_special_tokens(["<|im_start|>x", "[a]"])
    value = described("llama3")
    known = tokenizer.get_added_tokens_decoder().items()
    value["added_tokens"] = [
        {"id": i, "content": t.content, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
        for i, t in known
    ]
    memo, _ = encoders._word_memo(tokenizer, value)
    assert memo is not None
    text = "a<|im_start|>x[a]b<|im_start|>y"
    assert memo(text) == whole_ids(tokenizer, text)


def test_memory_for_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_MAX_WORDS", 5)
    memo = memo_of("llama3")
    text = "one two three four five six seven eight " + "x" * 200
    assert memo(text) == memo(text) == whole_ids(LLAMA, text)
    assert len(memo._words) <= 5
    assert not [word for word in memo._words if len(word) > encoders._MAX_WORD_CHARS]
