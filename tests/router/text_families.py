"""Small tokenizers, one per family that models use, trained here on a few lines."""

import hashlib
import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import cbor2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = hashlib.sha256(b"root").digest()

CORPUS = [
    "The quick brown fox doesn't jump over 12345 dogs; it's THEY'LL who do, don't they?\n\n  def f(x):\n\treturn x  # ok\r\n",
    "import os\nfor i in range(10):\n    print(i, 'a b', \"http://example.org/x?y=1\")\n\n\nclass ABCdef(Base):\n        pass\n",
    "Größe, naïve, résumé, ñandú, Straße: Überraschung – 3,14 € … ПРИВЕТ, мир! Ελληνικά.\n",
    "我喜欢编程，你呢？中文字。日本語のテキスト、カタカナ！한국어 문장입니다. 😀🎉👩‍👩‍👧\n",
    "ends in a space \n\nlike this \n\nand this \n\nand that \n\n",
    "once upon a time there was a small model that told the same story again and again and again\n",
] * 3

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
O200K = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
DEEPSEEK = "|".join(
    (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r" ?[\p{P}\p{S}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
UNKNOWN = r"\w+|[^\w]+"

CHATML = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


@dataclass(frozen=True)
class Family:
    build: Callable[[], Tokenizer]
    classes: str  # proved
    encoder: str
    named: dict[str, str] = field(default_factory=dict)


def _train(tokenizer: Tokenizer, special: list[str], vocab: int = 600, byte_level: bool = True) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer: Any = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    if isinstance(tokenizer.model, models.WordPiece):
        trainer = trainers.WordPieceTrainer(vocab_size=vocab, special_tokens=special, show_progress=False)
    if isinstance(tokenizer.model, models.Unigram):
        trainer = trainers.UnigramTrainer(vocab_size=vocab, special_tokens=special, unk_token=special[0], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level(*patterns: str, nfc: bool = False, use_regex: bool = False, prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    stages: list[Any] = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    stages.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=use_regex))
    tokenizer.pre_tokenizer = stages[0] if len(stages) == 1 else pre_tokenizers.Sequence(stages)
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return _train(tokenizer, CHATML)


def gpt2() -> Tokenizer:
    return byte_level(use_regex=True)


def llama3() -> Tokenizer:
    tokenizer = byte_level(LLAMA3)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 2)])
    return tokenizer


def smollm() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    return _train(tokenizer, CHATML)


def with_token(**flags: bool) -> Tokenizer:
    tokenizer = byte_level(LLAMA3)
    tokenizer.add_tokens([AddedToken("<|end|>", special=True, normalized=False, **flags)])
    return tokenizer


def spaced_token() -> Tokenizer:
    tokenizer = byte_level(LLAMA3)
    tokenizer.add_tokens([AddedToken("the cat", normalized=False)])
    return tokenizer


def bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _train(tokenizer, ["[UNK]", "[CLS]", "[SEP]"], byte_level=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return tokenizer


def metaspace(model: Any = None, scheme: str = "always") -> Tokenizer:
    tokenizer = Tokenizer(model or models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    return _train(tokenizer, ["<unk>", "<s>", "</s>"], byte_level=False)


def unsplit() -> Tokenizer:
    """Llama-2's newer form: words are joined, but no merge reaches across a space."""
    tokenizer = metaspace(scheme="first")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def gemma() -> Tokenizer:
    tokenizer = metaspace(scheme="never")
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


def across() -> Tokenizer:
    """Gemma-like with merges that reach across spaces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return _train(tokenizer, ["<unk>", "<s>", "</s>"], byte_level=False)


def legacy() -> Tokenizer:
    """Llama-2's older form."""
    tokenizer = metaspace(scheme="never")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    return tokenizer


FAMILIES = {
    "gpt2": Family(gpt2, "SC", "words"),
    "llama3": Family(llama3, "SNC", "words"),
    "qwen2": Family(lambda: byte_level(QWEN2, nfc=True), "SNC", "words"),
    "o200k": Family(lambda: byte_level(O200K), "SNC", "words"),
    "deepseek": Family(lambda: byte_level(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK), "SNC", "tokenizers"),
    "smollm": Family(smollm, "SC", "tokenizers"),
    "prefix_space": Family(lambda: byte_level(use_regex=True, prefix_space=True), "S", "tokenizers"),
    "rstrip": Family(lambda: with_token(rstrip=True), "C", "tokenizers"),
    "lstrip": Family(lambda: with_token(lstrip=True), "SC", "tokenizers"),
    "single_word": Family(lambda: with_token(single_word=True), "", "tokenizers"),
    "spaced_token": Family(spaced_token, "NC", "words"),
    "bert": Family(bert, "SNC", "tokenizers"),
    "metaspace": Family(metaspace, "S", "tokenizers"),
    "unigram": Family(lambda: metaspace(models.Unigram(), "first"), "S", "tokenizers"),
    "unsplit": Family(unsplit, "S", "tokenizers"),
    "gemma": Family(gemma, "S", "tokenizers"),
    "across": Family(across, "", "tokenizers"),
    "legacy": Family(legacy, "", "tokenizers"),
    "unknown": Family(lambda: byte_level(UNKNOWN), "", "tokenizers"),
}


@cache
def tokenizer_json(name: str) -> bytes:
    return FAMILIES[name].build().to_str().encode()


def tokenizer_of(name: str) -> Tokenizer:
    return Tokenizer.from_buffer(tokenizer_json(name))


def described(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(tokenizer_json(name))
    return value


def whole_ids(tokenizer: Tokenizer, text: str, specials: bool = False) -> bytes:
    return array("I", tokenizer.encode(text, add_special_tokens=specials).ids).tobytes()


def naive_keys(ids: bytes, block_size: int, salt: str = "", adapter: tuple[str, str] | None = None) -> list[int]:
    """vLLM's formula, spelled with cbor2."""
    tokens, keys, parent = array("I", ids), [], ROOT
    for start in range(0, len(tokens) - block_size + 1, block_size):
        extra: list[tuple[str, ...]] = [("lora", *adapter)] if adapter else []
        if salt and start == 0:
            extra.append(("cache_salt", salt))
        block = (parent, tuple(tokens[start : start + block_size]), tuple(extra) or None)
        parent = hashlib.sha256(cbor2.dumps(block, canonical=True)).digest()
        keys.append(int.from_bytes(parent[-8:], "big"))
    return keys
