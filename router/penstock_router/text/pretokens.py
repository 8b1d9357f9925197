"""What the pre-tokenizers of language models do, as far as it can be proved.

Promise: `kind_of` names a tokenizer only where its pre-tokenizer is understood piece by piece; anything else is None
and is never cut nor imitated.

A split pattern is judged alternative by alternative. Each alternative listed here has these properties, whatever
stands around it: a space can only be its first character or part of a run of white space, every run ends before a
space as it ends at the end of the text, and there is no look-behind. See `cuts` for what follows from that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LINES = r"\s*[\r\n]+"  # ends a run of white space at its last line break
BACKING_OFF = r"\s+(?!\S)"  # takes the end of text for white space
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"

# A whole pattern has `\s+`; together its alternatives take letters, punctuation and white space.
PROVED = frozenset(
    (
        *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _SUFFIX, r"'(?i:[sdmt]|ll|ve|re)"),
        *(r" ?\p{L}+", rf"{_LEAD}\p{{L}}+", rf"{_LEAD}[\p{{L}}\p{{M}}]+", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"),
        *(rf"{_LEAD}{_UPPER}*{_LOWER}+", rf"{_LEAD}{_UPPER}+{_LOWER}*"),
        *(rf"{_LEAD}{_UPPER}*{_LOWER}+{_SUFFIX}?", rf"{_LEAD}{_UPPER}+{_LOWER}*{_SUFFIX}?"),
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
        *(r" ?\p{N}+", r"\p{N}", r"\p{N}+", r"\p{N}{1,2}", r"\p{N}{1,3}"),
        *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
        *(r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r" ?[\p{P}\p{S}]+[\r\n]*"),
        *(LINES, r"\s*[\r\n]", BACKING_OFF, r"\s+"),
    )
)
# These split off what they match and leave the rest to the next stage.
PROVED_PARTIAL = frozenset((r"\p{N}", r"\p{N}{1,2}", r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", "[一-龥぀-ゟ゠-ヿ]+"))


def alternatives(pattern: str) -> list[str]:
    """The pattern's alternatives at its top level."""
    parts, depth, in_class, start, at = [], 0, False, 0, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 2
            continue
        if in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            parts.append(pattern[start:at])
            start = at + 1
        at += 1
    return [*parts, pattern[start:]]


@dataclass(frozen=True, slots=True)
class ByteLevel:
    """Split patterns one after the other, then bytes as characters. What most models have."""

    patterns: tuple[str, ...]
    add_prefix_space: bool

    @property
    def ends_lines(self) -> bool:
        """Whether every stage that backs off ends a run of white space at its line break first."""
        for pattern in self.patterns:
            parts = alternatives(pattern)
            if BACKING_OFF in parts:
                lines = [parts.index(x) for x in (LINES, r"\s*[\r\n]") if x in parts]
                if not lines or min(lines) > parts.index(BACKING_OFF):
                    return False
        return True


@dataclass(frozen=True, slots=True)
class Words:
    """White space separates words and is dropped: BERT."""


@dataclass(frozen=True, slots=True)
class Metaspace:
    """A space becomes ▁ and begins a piece, or joins pieces where `split` is False."""

    split: bool


Kind = ByteLevel | Words | Metaspace


def kind_of(tokenizer: Mapping[str, Any]) -> Kind | None:
    """From tokenizer.json as a dict."""
    pre = tokenizer.get("pre_tokenizer")
    normalizers = _stages(tokenizer.get("normalizer"), "normalizers")
    if pre is None or _splits_on_space(pre):
        # Gemma: the normaliser has already turned spaces into ▁, so nothing is split.
        return Metaspace(split=False) if normalizers == [_SPACE_TO_METASPACE] else None
    stages = _stages(pre, "pretokenizers")
    if stages[-1].get("type") == "ByteLevel":
        known = _are_local(normalizers)
        return _byte_level(stages) if known else None
    if len(stages) != 1:
        return None
    if stages[0]["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit"):
        return Words() if _are_local(normalizers, also=("BertNormalizer", "StripAccents")) else None
    if stages[0]["type"] == "Metaspace" and _are_local(normalizers):
        return Metaspace(split=stages[0].get("split", True)) if stages[0].get("replacement") == "▁" else None
    return None


_SPACE_TO_METASPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_LOCAL = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")  # a space stays a space and composes with nothing


def _stages(part: Mapping[str, Any] | None, list_name: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return list(part[list_name]) if part["type"] == "Sequence" else [part]


def _are_local(normalizers: list[Mapping[str, Any]], also: tuple[str, ...] = ()) -> bool:
    return all(x["type"] in (*_LOCAL, *also) for x in normalizers)


def _splits_on_space(pre: Mapping[str, Any]) -> bool:
    return pre["type"] == "Split" and pre.get("pattern") == {"String": " "} and not pre.get("invert")


def _byte_level(stages: list[Mapping[str, Any]]) -> ByteLevel | None:
    patterns = []
    for stage in stages[:-1]:
        if stage["type"] == "Digits":
            patterns.append(r"\p{N}" if stage["individual_digits"] else r"\p{N}+")
        elif stage["type"] == "Split" and stage["behavior"] == "Isolated" and not stage["invert"]:
            pattern = stage["pattern"].get("Regex")
            if pattern is None:
                return None
            patterns.append(pattern)
        else:
            return None
    last = stages[-1]
    if last.get("use_regex", True):
        patterns.append(GPT2_PATTERN)
    whole = [p for p in patterns if r"\s+" in alternatives(p)]
    if not whole or any(p not in whole and p not in PROVED_PARTIAL for p in patterns):
        return None
    if any(set(alternatives(p)) - PROVED for p in whole):
        return None
    return ByteLevel(tuple(patterns), last["add_prefix_space"])
