"""Where a text may be cut so that its parts, tokenized apart, are the whole tokenized at once.

Promise: for every class that `safe_classes` returns, ids(text) = ids(text[:p]) + ids(text[p:]) at every cut p of that
class, whatever text it is. Two characters decide about a cut:

S: text[p] is a space and text[p-1] is neither white space nor ▁ (some tokenizers turn spaces into ▁).
N: text[p-1] is a line feed and text[p] an ASCII letter or digit.
C: text[p-1] is a CJK letter and text[p] a CJK punctuation mark.

1. Static rules prove a class for the tokenizer's kind (`pretokens`): no match of its patterns reaches across p, and a
   match that ends at p ends there too where the text does. What is not understood has no class.
2. Then every short text around a cut, and random ones, are tried: a class with one counter-example is dropped. A try
   alone proves nothing (N under GPT-2's pattern survives tens of thousands of random cuts and is wrong).
"""

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import Tokenizer

from .pretokens import ByteLevel, Metaspace, Words, kind_of

CJK_MARKS: Final = "，。！？；：、"
_CJK_LETTERS: Final = "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
# Each form consumes text[p] and looks behind, so that a search steps from candidate to candidate.
CUT: Final = {
    "S": r" (?<![\s▁] )",
    "N": r"[A-Za-z0-9](?<=\n.)",
    "C": rf"[{CJK_MARKS}](?<=[{_CJK_LETTERS}].)",
}
_SINGLE: Final = {name: re.compile(form) for name, form in CUT.items()}


def cut_pattern(classes: str) -> re.Pattern[str] | None:
    """Finds the next cut of these classes behind position 0; None where there are none."""
    return re.compile("|".join(CUT[name] for name in classes)) if classes else None


def cuts_in(text: str, name: str) -> Iterator[int]:
    return (found.start() for found in _SINGLE[name].finditer(text) if found.start() > 0)


@dataclass(frozen=True, slots=True)
class CutClasses:
    classes: str  # of S, N, C; empty: texts are tokenized whole
    reasons: tuple[str, ...]  # why others are barred


def safe_classes(tokenizer: Tokenizer, described: Mapping[str, Any], seed: int = 0) -> CutClasses:
    """`described` is tokenizer.json as a dict, as the tokenizer itself writes it."""
    proved = proved_classes(tokenizer, described)
    left, reasons = proved.classes, list(proved.reasons)
    if left:
        specials = [entry["content"] for entry in described["added_tokens"]][:6]
        for name, at in counter_examples(tokenizer, left, probe_texts(left, specials, seed)).items():
            left = left.replace(name, "")
            reasons.append(f"{name}: a probe differs at character {at}")
    return CutClasses(left, tuple(reasons))


# -- 1. static rules


def proved_classes(tokenizer: Tokenizer, described: Mapping[str, Any]) -> CutClasses:
    classes, reason = _by_kind(described)
    reasons = [reason] if reason else []
    for token in described["added_tokens"]:
        barred = {name for content in _forms(tokenizer, token) for name in classes if any(cuts_in(content, name))}
        if token["rstrip"]:
            barred |= {"S", "N"}
        if token["lstrip"]:
            barred |= {"N"}
        if token["single_word"]:
            barred |= {"S", "N", "C"}
        for name in sorted(barred & set(classes)):
            classes = classes.replace(name, "")
            reasons.append(f"{name}: an added token (id {token['id']}) may reach across")
    return CutClasses(classes, tuple(reasons))


def _forms(tokenizer: Tokenizer, token: Mapping[str, Any]) -> set[str]:
    """How a token's content may look in a text: a normalized one is matched behind the normaliser."""
    content = token["content"]
    if not token["normalized"] or tokenizer.normalizer is None:
        return {content}
    normalized = tokenizer.normalizer.normalize_str(content)
    return {content, content.upper(), normalized, normalized.replace("▁", " ")}


def _by_kind(described: Mapping[str, Any]) -> tuple[str, str]:
    """Classes of this kind of tokenizer, and why not all."""
    model = described["model"]
    if model.get("dropout"):
        return "", "BPE dropout"
    match kind_of(described):
        case ByteLevel(add_prefix_space=True):
            return "S", "N, C: a section's first word gets a space"
        case ByteLevel() as kind:
            return ("SNC", "") if kind.ends_lines else ("SC", "N: a run of white space may end behind its line break")
        case Words():
            return "SNC", ""
        case Metaspace(split=True):
            return "S", "N, C: pieces end at spaces only"
        case Metaspace(split=False):
            return _unsplit(model)
    return "", "an unknown kind of pre-tokenizer"


def _unsplit(model: Mapping[str, Any]) -> tuple[str, str]:
    """Nothing is split: S holds where no merge can reach across a letter and the ▁ behind it."""
    vocabulary = model["vocab"]
    if model["type"] != "BPE" or model.get("ignore_merges") or model.get("end_of_word_suffix"):
        return "", "not split into words"
    if model.get("continuing_subword_prefix") or "▁" not in vocabulary:
        return "", "not split into words"
    across = re.compile("[^▁]▁").search
    return ("", "the vocabulary has words that reach across a space") if any(map(across, vocabulary)) else ("S", "")


# -- 2. trying

REPRESENTATIVES: Final = (
    *("a", "Z", "s", "9", " ", "\n", "\r", "\t", "'", ".", "_", "é", "\u0301", "中", "，", "ſ", "\u00a0", "😀"),
    *("가", "ᅡ", "²", "\u200d"),
)
WORDS: Final = (
    *("the", "don't", "I'LL", "12345", "  ", "\n\n", "\r\n", " \n ", "    ", "中文字", "http://x", "ABCdef", "x1y2", "ｶﾞ"),
    *(
        "ñ",
        "e\u0301",
        "👩‍👩‍👧",
        "م",
        "हिन्दी",
        "\u2028",
        "\u3000",
        "\x1c",
        "\x85",
        "\x00",
        "ß",
        "İ",
        "ﬁ",
        "ll",
        "/",
        "#",
        "-",
        "ˆ",
        "ᄀ",
    ),
    *("\u0600", "¨", "▁", "the cat", "A\nb", "\n\nq", "字，中"),
)
_RANDOM_TEXTS = 700
_BATCH = 512


def random_text(rng: random.Random, specials: list[str], longest: int = 14) -> str:
    return "".join(rng.choices((*REPRESENTATIVES, *WORDS, *specials), k=rng.randint(2, longest)))


def probe_texts(classes: str, specials: list[str], seed: int) -> Iterator[str]:
    """Up to two characters left and one right of each kind of cut, then random texts."""
    for name in classes:
        for left, right in _sides(name):
            yield from (x + left + right + y for x in ("", *REPRESENTATIVES) for y in ("", *REPRESENTATIVES))
    rng = random.Random(seed)
    for _ in range(_RANDOM_TEXTS):
        yield random_text(rng, specials)


def _sides(name: str) -> Iterator[tuple[str, str]]:
    if name == "S":
        return ((left, " ") for left in REPRESENTATIVES if not left.isspace())
    if name == "N":
        return (("\n", right) for right in "aZ9")
    return ((left, right) for left in "中가" for right in "，。")


def counter_examples(tokenizer: Tokenizer, classes: str, texts: Iterable[str]) -> dict[str, int]:
    """Class -> position of a cut of it at which a text's parts are not the whole."""
    known: dict[str, list[int]] = {}

    def learn(missing: list[str]) -> None:
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            for text, encoding in zip(batch, tokenizer.encode_batch_fast(batch, add_special_tokens=False), strict=True):
                known[text] = encoding.ids

    cuts = [(text, name, at) for text in dict.fromkeys(texts) for name in classes for at in cuts_in(text, name)]
    learn(list(dict.fromkeys(part for text, _, at in cuts for part in (text, text[:at], text[at:]))))
    return {name: at for text, name, at in cuts if known[text] != known[text[:at]] + known[text[at:]]}
