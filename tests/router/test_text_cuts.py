import random
import re

import pytest
from text_families import FAMILIES, LLAMA3, described, tokenizer_of

from penstock_router.text.cuts import counter_examples, cut_pattern, cuts_in, proved_classes, random_text, safe_classes
from penstock_router.text.pretokens import GPT2_PATTERN, ByteLevel, alternatives, kind_of


def specials_of(name: str) -> list[str]:
    return [entry["content"] for entry in described(name)["added_tokens"]][:6]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_the_cut_classes_that_are_proved_for_it(name: str) -> None:
    assert proved_classes(tokenizer_of(name), described(name)).classes == FAMILIES[name].classes


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.classes])
def test_a_text_cut_anywhere_is_tokenized_as_the_whole(name: str) -> None:
    rng = random.Random(f"cuts of {name}")
    texts = [random_text(rng, specials_of(name), longest=20) for _ in range(200)]
    assert counter_examples(tokenizer_of(name), FAMILIES[name].classes, texts) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.classes])
def test_thousands_of_texts_cut_anywhere_are_tokenized_as_the_whole(name: str) -> None:
    rng = random.Random(f"many cuts of {name}")
    texts = [random_text(rng, specials_of(name), longest=24) for _ in range(2_500)]
    assert counter_examples(tokenizer_of(name), FAMILIES[name].classes, texts) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_trying_drops_no_class_that_is_proved(name: str) -> None:
    assert safe_classes(tokenizer_of(name), described(name)).classes == FAMILIES[name].classes


def test_trying_finds_a_class_that_is_wrong() -> None:
    tokenizer = tokenizer_of("gpt2")
    assert "N" in counter_examples(tokenizer, "SNC", ["x \na"])
    assert "S" in counter_examples(tokenizer_of("rstrip"), "S", ["a<|end|> b"])
    assert "S" in counter_examples(tokenizer_of("legacy"), "S", ["a b"])


def test_a_class_with_a_counter_example_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock_router.text.cuts.REPRESENTATIVES", ("a", "Z", " ", "\n", "."))
    monkeypatch.setattr("penstock_router.text.cuts._by_kind", lambda described: ("SNC", ""))
    found = safe_classes(tokenizer_of("across"), described("across"))
    assert "S" not in found.classes
    assert any(reason.startswith("S: a probe differs") for reason in found.reasons)


def test_what_bars_a_class_is_told() -> None:
    found = proved_classes(tokenizer_of("rstrip"), described("rstrip"))
    assert [reason[:2] for reason in found.reasons] == ["N:", "S:"]


@pytest.mark.parametrize(
    ("text", "name", "cuts"),
    [
        ("a b  c", "S", [1, 3]),
        (" a", "S", []),
        ("a\u00a0 b\t c", "S", []),
        ("▁ b", "S", []),
        ("\x1c b", "S", []),
        ("a\n\nb\n1\n c", "N", [3, 5]),
        ("\nb", "N", [1]),
        ("中，a，か、²，", "C", [1, 5]),
    ],
)
def test_a_cut_is_decided_by_two_characters(text: str, name: str, cuts: list[int]) -> None:
    assert list(cuts_in(text, name)) == cuts
    pattern = cut_pattern(name)
    assert pattern is not None
    assert [p for p in range(1, len(text)) if pattern.match(text, p)] == cuts


def test_without_a_class_there_is_no_pattern() -> None:
    assert cut_pattern("") is None


def test_alternatives_are_told_apart_at_the_top_level_only() -> None:
    assert alternatives(r"(?i:a|b)|[|\]|]+|\||c") == [r"(?i:a|b)", r"[|\]|]+", r"\|", "c"]
    assert "|".join(alternatives(LLAMA3)) == LLAMA3
    assert len(alternatives(GPT2_PATTERN)) == 12


@pytest.mark.parametrize(
    "pattern",
    [
        LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+ ?"),  # a space behind a run
        LLAMA3 + r"|(?<=a)b",  # looks behind
        LLAMA3.removesuffix(r"|\s+"),  # leaves gaps
        re.escape("x"),
    ],
)
def test_a_pattern_with_anything_unproved_is_no_known_kind(pattern: str) -> None:
    value = described("llama3")
    value["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}
    assert kind_of(value) is None


def test_a_pattern_that_backs_off_before_it_ends_lines_does_not_end_lines() -> None:
    swapped = LLAMA3.replace(r"|\s*[\r\n]+|\s+(?!\S)", r"|\s+(?!\S)|\s*[\r\n]+")
    assert ByteLevel((LLAMA3,), False).ends_lines
    assert not ByteLevel((swapped,), False).ends_lines
    assert not ByteLevel((r"\p{N}", GPT2_PATTERN), False).ends_lines


def test_dropout_bars_every_class() -> None:
    value = described("llama3")
    value["model"]["dropout"] = 0.1
    assert proved_classes(tokenizer_of("llama3"), value).classes == ""
