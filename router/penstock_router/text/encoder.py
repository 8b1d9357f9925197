"""From text to token ids, exactly as `tokenizers` does it.

Promise: an encoder returns the ids of `Tokenizer.encode(text, add_special_tokens=False)` as bytes, uint32 little-endian.

`HfEncoder` asks the library. `WordMemo` is several times faster and stands in where it is provably equal: byte-level
BPE has no state between the words that its split pattern makes, so a word's ids can be remembered. Words are found by
`re` with a translation of the pattern that is exact on an alphabet where the engines' Unicode tables cannot differ
(`ALPHABET`); a text with any other character goes to the library. At load both are compared on probes.
"""

import itertools
import os
import random
import re
import unicodedata
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tokenizers import Tokenizer
from tokenizers.models import Model

from .cuts import random_text
from .errors import TextRefused
from .pretokens import ByteLevel, kind_of

# The library's thread pool costs more than it brings for one text at a time, and a router has one core.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_MAX_WORDS = 100_000  # remembered: about 20 MB
_MAX_WORD_CHARS = 64  # longer ones are too rare to remember
_PROBES = 1_200
INLINE_CHARS: Final = 4_096  # the library's millisecond


class Encoder(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def inline_chars(self) -> int:
        """Up to so many ASCII characters encode in about a millisecond. Others may take the library's time."""

    def __call__(self, text: str) -> bytes: ...


class HfEncoder:
    """The reference. Releases the GIL while it works."""

    __slots__ = ("_encode",)

    name: Final = "tokenizers"
    inline_chars: Final = INLINE_CHARS

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode_batch_fast

    def __call__(self, text: str) -> bytes:
        try:
            (encoding,) = self._encode([text], add_special_tokens=False)
        except TypeError as error:
            # What it says of a text with lone surrogates. Anything else is a fault of ours.
            if is_valid(text):
                raise
            raise TextRefused("has a lone surrogate, which no encoding of Unicode can hold") from error
        return array("I", encoding.ids).tobytes()


def is_valid(text: str) -> bool:
    """Whether every character can be encoded: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# -- the pattern, translated

# Old blocks without marks: letters, digits, punctuation and symbols whose category no Unicode version has changed since
# the engines' oldest. Left out: NEL, ſ (which stands for an s where case is ignored), and scripts without spaces, whose
# words are too long to remember.
_BLOCKS: Final = (
    *((0x00, 0x84), (0x86, 0x17E), (0x180, 0x24F), (0x391, 0x3A1), (0x3A3, 0x3CE), (0x400, 0x45F)),
    *((0x2010, 0x2027), (0x2030, 0x205E), (0x20AC, 0x20AC), (0x2190, 0x23F3), (0x2500, 0x26FF), (0x1F300, 0x1F64F)),
)
ASCII: Final = tuple(map(chr, range(128)))
# Every character is its own NFC form and none is a mark, so a text of this alphabet is in NFC.
ALPHABET: Final = tuple(
    char
    for low, high in _BLOCKS
    for char in map(chr, range(low, high + 1))
    if unicodedata.category(char) not in ("Cn", "Mn") and unicodedata.is_normalized("NFC", char)
)
_NOTHING: Final = "\ufdd0"  # a noncharacter: stands for a class that is empty on the alphabet
_WHITE_SPACE: Final = frozenset("\t\n\v\f\r \xa0")  # Unicode's, on the alphabet; Python's \s has U+001C to U+001F too


def _ranges(chars: Iterable[str]) -> str:
    """The inside of a character class."""
    runs: list[list[int]] = []
    for code in map(ord, chars):
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in runs)


imitated: Final = re.compile(f"[{_ranges(ALPHABET)}]*").fullmatch
_TOKEN: Final = re.compile(r"\\p\{(?P<category>\w+)\}|\\.|.", re.DOTALL)


def translate(pattern: str, alphabet: Sequence[str]) -> str:
    r"""The pattern for `re`, with \p{..}, \s and \S spelled out: equal on texts of this alphabet."""
    out: list[str] = []
    in_class = False
    white = _ranges(c for c in alphabet if c in _WHITE_SPACE)
    for found in _TOKEN.finditer(pattern):
        token, category = found[0], found["category"]
        if category is not None:
            members = _ranges(c for c in alphabet if unicodedata.category(c).startswith(category)) or _NOTHING
        elif token == r"\s":
            members = white
        elif token == r"\S":
            if in_class:
                raise re.error(r"\S inside a class")
            out.append(f"[^{white}]")
            continue
        elif in_class:
            in_class = token != "]"
            out.append(r"\[" if token == "[" else token)
            continue
        else:
            in_class = token == "["
            out.append(token)
            continue
        out.append(members if in_class else f"[{members}]")
    return "".join(out)


# -- words remembered


def _byte_characters() -> list[str]:
    """How byte-level vocabularies write each byte: printable ones as themselves, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = itertools.count(0x100)
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


class _Words(dict[str, bytes]):
    """Word -> its ids as bytes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._tokenize = model.tokenize
        self._characters = _byte_characters()

    def __missing__(self, word: str) -> bytes:
        if word.isascii() and word.isprintable():
            written = word.replace(" ", self._characters[0x20])  # the others stand for themselves
        else:
            written = "".join(map(self._characters.__getitem__, word.encode()))
        tokens = self._tokenize(written)
        ids = array("I", [token.id for token in tokens]).tobytes()
        if len(word) <= _MAX_WORD_CHARS:
            if len(self) >= _MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids


class WordMemo:
    """Byte-level BPE with one known split pattern; texts outside the alphabet go to the library."""

    __slots__ = ("_added", "_find", "_find_ascii", "_hf", "_split", "_words")

    name: Final = "words"
    inline_chars: Final = 16_384

    def __init__(self, tokenizer: Tokenizer, pattern: str, added: Mapping[str, int]) -> None:
        self._hf = HfEncoder(tokenizer)
        self._words = _Words(tokenizer.model)
        self._find_ascii = re.compile(translate(pattern, ASCII), re.ASCII).findall
        self._find = re.compile(translate(pattern, ALPHABET)).findall
        self._added = {content: array("I", [token]).tobytes() for content, token in added.items()}
        # The library takes the leftmost, then the longest.
        longest_first = sorted(map(re.escape, added), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(longest_first)})").split if added else None

    def __call__(self, text: str) -> bytes:
        find = self._find_ascii
        if not text.isascii():
            if not imitated(text):
                return self._hf(text)
            find = self._find
        ids_of = self._words.__getitem__
        if self._split is None:
            return b"".join(map(ids_of, find(text)))
        sections = self._split(text)
        if len(sections) == 1:
            return b"".join(map(ids_of, find(text)))
        parts: list[bytes] = []
        for index, section in enumerate(sections):
            if index & 1:
                parts.append(self._added[section])
            elif section:
                parts += map(ids_of, find(section))
        return b"".join(parts)

    def covers_its_alphabet(self) -> bool:
        """Whether every character is part of some word, so that no text has gaps between words."""
        return all(self._find(char) == [char] for char in ALPHABET) and all(self._find_ascii(char) == [char] for char in ASCII)


@dataclass(frozen=True, slots=True)
class Choice:
    encoder: Encoder
    reason: str  # why not the faster one; empty where it is


def choose_encoder(tokenizer: Tokenizer, described: Mapping[str, Any], seed: int = 0) -> Choice:
    """The fastest encoder proved equal to the library for this tokenizer."""
    memo, reason = _word_memo(tokenizer, described)
    if memo is not None:
        specials = [entry["content"] for entry in described["added_tokens"]][:8]
        if differs := differing_probes(tokenizer, memo, specials, seed):
            memo, reason = None, f"{differs} probes differ"
    return Choice(memo or HfEncoder(tokenizer), reason)


def _word_memo(tokenizer: Tokenizer, described: Mapping[str, Any]) -> tuple[WordMemo | None, str]:
    kind, model, tokens = kind_of(described), described["model"], described["added_tokens"]
    if not isinstance(kind, ByteLevel) or kind.add_prefix_space or len(kind.patterns) != 1:
        return None, "not a byte-level tokenizer with one split pattern"
    if (
        model["type"] != "BPE"
        or model.get("dropout")
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        return None, "not plain BPE"
    normalizer = described.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":
        return None, f"normaliser {normalizer['type']}"
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in tokens):
        return None, "an added token depends on what stands around it"
    if len({token["normalized"] for token in tokens}) > 1 or not all(
        unicodedata.is_normalized("NFC", t["content"]) for t in tokens
    ):
        return None, "added tokens are matched in two passes"
    try:
        memo = WordMemo(tokenizer, kind.patterns[0], {token["content"]: token["id"] for token in tokens if token["content"]})
    except re.error as error:
        return None, f"split pattern: {error}"
    return (memo, "") if memo.covers_its_alphabet() else (None, "the split pattern leaves gaps")


def differing_probes(tokenizer: Tokenizer, encoder: Encoder, specials: list[str], seed: int) -> int:
    rng = random.Random(seed)
    texts = [random_text(rng, specials) for _ in range(_PROBES)]
    texts += ["".join(rng.choices(ALPHABET if i & 1 else ASCII, k=24)) for i in range(_PROBES)]
    wanted = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return sum(encoder(text) != array("I", encoding.ids).tobytes() for text, encoding in zip(texts, wanted, strict=True))
