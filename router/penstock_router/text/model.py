"""A model's text side: from messages, text or ids to token ids and block keys.

Promise: ids are those of vLLM's own tokenization (template, special tokens and all), keys are those of its prefix
cache; both at the cost of what is new. One owner: an event loop. Nothing here waits.

A caller that may not block does:

    pending = model.open_chat(messages)            # or open_prompt(text)
    if pending.needs_thread:
        await asyncio.to_thread(pending.encode)
    encoded = model.finish(pending, salt)          # or all of it: encode_chat, encode_prompt
"""

import logging
import sys
from array import array
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Self

from tokenizers import Tokenizer

from penstock_policy.cache.hashes import BlockHasher
from penstock_policy.cache.hashes import keys as keys_of

from . import facts
from .chunks import Adapter, ChunkCache, ChunkStats, Encoded, Pending
from .cuts import safe_classes
from .encoder import INLINE_CHARS, choose_encoder, is_valid
from .errors import TemplateRefused, TextRefused
from .template import ChatTemplate, Clock, choose_source

log: Final = logging.getLogger(__name__)
CACHE_BYTES: Final = 128 * 1024 * 1024

if sys.byteorder != "little":
    raise ImportError("token ids are uint32 little-endian on the wire and in memory: this machine is big-endian")


class TextModel:
    """One model digest. `load` takes up to a second of CPU: not on an event loop."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        hasher: BlockHasher,
        cache: ChunkCache,
        *,
        generation_defaults: Mapping[str, int | float],
        max_model_len: int,
        vocab_size: int,
        cut_classes: str,
        encoder_name: str,
    ) -> None:
        self.generation_defaults = generation_defaults
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.cut_classes = cut_classes  # empty: every text is tokenized whole
        self.encoder_name = encoder_name
        self.whole_prompts = 0  # completions whose special tokens could not be set apart; counted, each tokenized whole
        self._template = template
        self._hasher = hasher
        self._cache = cache
        self._with_specials = _WholeEncoder(tokenizer)
        self._around = special_tokens_around(tokenizer)
        if self._around is None:
            log.warning("the tokenizer's special tokens are not a prefix and a suffix: completions are tokenized whole")

    @classmethod
    def load(
        cls,
        files: Mapping[str, bytes],
        block_size: int,
        root: bytes,
        *,
        clock: Clock = datetime.now,
        max_model_len: int | None = None,
        vocab_size: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> Self:
        """From the files of `Worker.Model` by name; `block_size` and `root` are the workers' hash settings.

        `max_model_len` and `vocab_size` as the engine has them, else from the files. `clock` is what templates print
        dates from. Raises ModelFilesError.
        """
        config = facts.read_object(files, facts.TOKENIZER_CONFIG)
        model_config = facts.read_object(files, "config.json")
        named = facts.special_tokens(config, facts.read_object(files, "special_tokens_map.json"))
        source = choose_source(config, facts.read_text(files, "chat_template.jinja"))
        template = ChatTemplate(*source, named, clock) if source is not None else None
        defaults = facts.generation_defaults(facts.read_object(files, "generation_config.json"))
        length = max_model_len or facts.max_model_len(model_config, config)
        tokenizer = facts.load_tokenizer(files, config, named)
        size = facts.tokenizer_size(tokenizer)
        vocab = vocab_size or facts.vocabulary_size(model_config, size)
        described = facts.describe(files, tokenizer)
        cuts = safe_classes(tokenizer, described)
        choice = choose_encoder(tokenizer, described)
        reasons = "".join(f"; {reason}" for reason in (*cuts.reasons, choice.reason) if reason)
        log.info("tokenizer loaded: cut classes %s, encoder %s%s", cuts.classes or "none", choice.encoder.name, reasons)
        if not cuts.classes:
            log.warning("no safe cut is known for this tokenizer: every prompt is tokenized whole, none from the cache")
        hasher = BlockHasher(block_size, root, max(vocab, size))
        return cls(
            tokenizer,
            template,
            hasher,
            ChunkCache(choice.encoder, hasher, cuts.classes, cache_bytes),
            generation_defaults=defaults,
            max_model_len=length,
            vocab_size=vocab,
            cut_classes=cuts.classes,
            encoder_name=choice.encoder.name,
        )

    @property
    def stats(self) -> ChunkStats:
        """Of the tokenizer cache."""
        return self._cache.stats

    @property
    def cached_bytes(self) -> int:
        return self._cache.stats.bytes

    @property
    def block_size(self) -> int:
        return self._hasher.block_size

    # -- what requests need

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of these messages. Raises TemplateRefused."""
        if self._template is None:
            raise TemplateRefused("this model has no chat template: send a prompt instead of messages")
        return self._template.render(messages)

    def open_chat(self, messages: Sequence[Mapping[str, str]]) -> Pending:
        """A template writes its own special tokens, so none are added."""
        return self._cache.open(self.render_chat(messages))

    def open_prompt(self, text: str) -> Pending:
        """A completion's text, with the special tokens that the tokenizer puts around it."""
        if self._around is None:
            self.whole_prompts += 1
            return self._cache.open(text, encoder=self._with_specials)
        return self._cache.open(text, *self._around)

    def finish(self, pending: Pending, salt: str = "", adapter: Adapter | None = None) -> Encoded:
        """Raises TextRefused. `salt` and `adapter` (name, path) change keys, never ids."""
        return self._cache.finish(pending, salt, adapter)

    def encode_chat(self, messages: Sequence[Mapping[str, str]], salt: str = "", adapter: Adapter | None = None) -> Encoded:
        return self.finish(self.open_chat(messages), salt, adapter)

    def encode_prompt(self, text: str, salt: str = "", adapter: Adapter | None = None) -> Encoded:
        return self.finish(self.open_prompt(text), salt, adapter)

    def hash_ids(self, ids: "Sequence[int] | array[int]", salt: str = "", adapter: Adapter | None = None) -> "array[int]":
        """Keys of the complete blocks of ids below `vocab_size`."""
        return keys_of(self._hasher.extend(None, ids, salt, adapter))

    def encode_ids(self, ids: "Sequence[int] | array[int]", salt: str = "", adapter: Adapter | None = None) -> Encoded:
        """Ids that the client sent, checked by the caller to lie below `vocab_size`."""
        own = ids if isinstance(ids, array) and ids.typecode == "I" else array("I", ids)
        return Encoded(own.tobytes(), len(own), self.hash_ids(own, salt, adapter))


class _WholeEncoder:
    """The library with its own special tokens."""

    name: Final = "tokenizers"
    inline_chars: Final = INLINE_CHARS

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode_batch_fast

    def __call__(self, text: str) -> bytes:
        if not is_valid(text):
            raise TextRefused("has a lone surrogate, which no encoding of Unicode can hold")
        (encoding,) = self._encode([text], add_special_tokens=True)
        return array("I", encoding.ids).tobytes()


_AROUND_PROBES: Final = ("", "a", "Hello world", " x", "\n\n1 2")


def special_tokens_around(tokenizer: Tokenizer) -> tuple[bytes, bytes] | None:
    """Ids that the tokenizer puts before and behind any text, as bytes; None where it does something else."""
    probe = tokenizer.encode("a", add_special_tokens=True)
    own = [index for index, special in enumerate(probe.special_tokens_mask) if not special]
    if not own:
        return None
    before, behind = probe.ids[: own[0]], probe.ids[own[-1] + 1 :]
    for text in _AROUND_PROBES:
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        if tokenizer.encode(text, add_special_tokens=True).ids != [*before, *plain, *behind]:
            return None
    return array("I", before).tobytes(), array("I", behind).tobytes()
