"""What a model's JSON files say: defaults of sampling, sizes, special tokens, the tokenizer.

Promise: the values vLLM's server would use, or a ModelFilesError that names the file and what is wrong in it.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from .errors import ModelFilesError

TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
DEFAULT_MAX_MODEL_LEN: Final = 2048  # vLLM's, where no file tells
_NO_LIMIT: Final = 1e15  # transformers writes 1e30 where a tokenizer has none
_NAMED_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LENGTHS: Final = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
# Rotary scalings whose max_position_embeddings is the scaled length already.
_SCALED_ALREADY: Final = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
_SAMPLING: Final = {
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_tokens",
}


def read_object(files: Mapping[str, bytes], file: str) -> dict[str, Any]:
    """A JSON file; empty where the model does not have it."""
    data = files.get(file)
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelFilesError(file, f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFilesError(file, "not a JSON object")
    return value


def read_text(files: Mapping[str, bytes], file: str) -> str | None:
    data = files.get(file)
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError as error:
        raise ModelFilesError(file, "not UTF-8") from error


def generation_defaults(generation_config: Mapping[str, Any]) -> dict[str, int | float]:
    """Sampling fields that the model's owner has set, by Sampling's names."""
    out: dict[str, int | float] = {}
    for given, name in _SAMPLING.items():
        value = generation_config.get(given)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ModelFilesError("generation_config.json", f"{given} must be a number")
        if given == "top_k":
            value = max(0, int(value))  # -1 says all, too
        elif given == "max_new_tokens":
            value = int(value)
        out[name] = value
    return out


def vocabulary_size(config: Mapping[str, Any], tokenizer_size: int) -> int:
    return _count(_language(config), "vocab_size") or tokenizer_size


def max_model_len(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> int:
    """Tokens of the context where the engine's arguments do not say."""
    language = _language(config)
    lengths = [float(length) for name in _LENGTHS if (length := _count(language, name))]
    own = _count(language, "model_max_length")
    if own:
        lengths = [float(own)]
    limit = tokenizer_config.get("model_max_length")
    if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT:
        lengths.append(float(limit))
    if not lengths:
        return DEFAULT_MAX_MODEL_LEN
    shortest = min(lengths)
    return int(shortest * _rotary_factor(language))


def _rotary_factor(language: Mapping[str, Any]) -> float:
    rotary = language.get("rope_parameters") or language.get("rope_scaling")
    if not isinstance(rotary, dict) or "gemma3" in str(language.get("model_type", "")):
        return 1.0
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    factor = rotary.get("factor")
    return float(factor) if kind not in _SCALED_ALREADY and isinstance(factor, int | float) else 1.0


def _language(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A multimodal model keeps its language model's config in a part of its own."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def _count(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelFilesError("config.json", f"{name} must be a whole number above 0")
    return value


def special_tokens(tokenizer_config: Mapping[str, Any], special_tokens_map: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and the like, as chat templates know them."""
    out = {}
    for name in _NAMED_TOKENS:
        token = tokenizer_config.get(name, special_tokens_map.get(name))
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and content:
            out[name] = content
    return out


def load_tokenizer(files: Mapping[str, bytes], config: Mapping[str, Any], named: Mapping[str, str]) -> Tokenizer:
    """As transformers loads it: the configured special tokens and BOS/EOS rule win over tokenizer.json."""
    data = files.get(TOKENIZER)
    if data is None:
        raise ModelFilesError(TOKENIZER, "missing: models without a fast tokenizer are not supported")
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises plain Exception for whatever is wrong in the file
        raise ModelFilesError(TOKENIZER, f"not a tokenizer: {str(error)[:200]}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_tokens(_configured_tokens(config, named, {t.content for t in tokenizer.get_added_tokens_decoder().values()}))
    if "add_bos_token" in config or "add_eos_token" in config:
        _set_template(tokenizer, config, named)
    return tokenizer


def _configured_tokens(config: Mapping[str, Any], named: Mapping[str, str], known: set[str]) -> list[AddedToken]:
    decoder = config.get("added_tokens_decoder") or {}
    try:
        entries = [decoder[index] for index in sorted(decoder, key=int)]
        tokens = [AddedToken(**{k: v for k, v in entry.items() if k != "__type"}) for entry in entries]
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ModelFilesError(TOKENIZER_CONFIG, f"added_tokens_decoder: {str(error)[:200]}") from error
    contents = {token.content for token in tokens} | known
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    wanted = [*named.values(), *(x.get("content") if isinstance(x, dict) else x for x in extra if isinstance(x, str | dict))]
    missing = [x for x in dict.fromkeys(wanted) if isinstance(x, str) and x not in contents]
    return [t for t in tokens if t.content not in known] + [AddedToken(x, special=True, normalized=False) for x in missing]


def _set_template(tokenizer: Tokenizer, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    begin = named.get("bos_token") if config.get("add_bos_token") else None
    end = named.get("eos_token") if config.get("add_eos_token") else None
    used = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((begin, end)) if token is not None]
    parts = [*([f"{begin}:0"] if begin else []), "$A:0", *([f"{end}:0"] if end else [])]
    tokenizer.post_processor = TemplateProcessing(single=parts, special_tokens=used)


def describe(files: Mapping[str, bytes], tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json, with the added tokens that the tokenizer really has."""
    described = read_object(files, TOKENIZER)
    described["added_tokens"] = [
        {
            "id": index,
            "content": token.content,
            "rstrip": token.rstrip,
            "lstrip": token.lstrip,
            "single_word": token.single_word,
            "normalized": token.normalized,
        }
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    ]
    return described


def tokenizer_size(tokenizer: Tokenizer) -> int:
    """One above the highest id."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
