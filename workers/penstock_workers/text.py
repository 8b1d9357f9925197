"""Text of a leg: incremental detokenizer and stop strings, as vLLM's frontend does them, across legs.

Promise: an answer cut into legs at any token has the text, the stop and the finish of the uncut answer. A leg replays the
ids emitted before it and skips the characters already sent, so neither a character nor a stop string breaks at a seam.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

REPLACEMENT = "\ufffd"
_TAIL = 16  # prompt tokens that prime a decoder: enough to tell a word's start from its middle
_INVALID_PREFIX = "Invalid prefix encountered"


class SeamError(ValueError):
    """More characters are said to be sent than the emitted tokens have."""


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


class Tokens:
    """The tokenizer of a served model, shared by its legs."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(i for i, token in added.items() if token.special)
        self._added = {i: token.content.encode() for i, token in added.items()}
        self._byte_level = "ByteLevel" in _decoder_kinds(tokenizer)
        self._bytes: dict[int, bytes] = {}
        self._table = _byte_of_character()

    @classmethod
    def load(cls, model_dir: str) -> "Tokens":
        return cls(Tokenizer.from_file(str(Path(model_dir) / "tokenizer.json")))

    def bytes_of(self, token_id: int) -> bytes:
        """A token alone; it may be part of a character."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id]
        piece = self.tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            return bytes(self._table[c] for c in piece if c in self._table)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("\u2581", " ").encode()

    def decoder(self, prompt_ids: Sequence[int]) -> "Decoder":
        return Decoder(self.tokenizer, prompt_ids)


def _decoder_kinds(tokenizer: Tokenizer) -> set[str]:
    if tokenizer.decoder is None:
        return set()
    state = json.loads(tokenizer.decoder.__getstate__())
    return {state.get("type", "")} | {part.get("type", "") for part in state.get("decoders", [])}


class Decoder:
    """One `DecodeStream`, primed with the prompt's tail.

    vLLM primes with the whole prompt. The tail gives the same text at a cost that does not grow with the prompt, and where
    the prompt ends inside a character (vLLM then repeats the prompt in the answer) only the answer's part is given.
    """

    __slots__ = ("_lead", "_stream", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        tail, text = _tail(tokenizer, prompt_ids)
        self._stream = DecodeStream(ids=tail, skip_special_tokens=True)
        self._lead = text if text.endswith(REPLACEMENT) else ""

    def step(self, token_id: int) -> str:
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except (OverflowError, TypeError):
            return ""
        except Exception as error:  # tokenizers raises plain Exception: only its message tells
            if not str(error).startswith(_INVALID_PREFIX):
                raise
            # Not monotonic: the bytes so far were no UTF-8. vLLM starts afresh too.
            self._stream = DecodeStream(skip_special_tokens=True)
            text = self._stream.step(self._tokenizer, token_id)
        if not text:
            return ""
        if self._lead:
            whole, self._lead = self._lead, ""
            return str(text.removeprefix(whole if text.startswith(whole) else whole.rstrip(REPLACEMENT)))
        return str(text)


def _tail(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> tuple[list[int], str]:
    """The shortest tail that has text: with none, a decoder takes the next token for the start of a text."""
    length = _TAIL
    while True:
        tail = list(prompt_ids[-length:])
        text = tokenizer.decode(tail, skip_special_tokens=True)
        if text or length >= len(prompt_ids):
            return tail, text
        length *= 4


@dataclass(frozen=True, slots=True)
class Pushed:
    """What `LegText.push` made of new tokens."""

    kept: int  # tokens up to the one that completed a stop string
    stop: str = ""  # the stop string found


class LegText:
    """The text of one leg. `push` takes tokens, `take` gives text that may be sent."""

    __slots__ = ("_count", "_decoder", "_held", "_min_tokens", "_stops", "_unsent", "chars_sent")

    def __init__(
        self,
        tokens: Tokens,
        prompt_ids: Sequence[int],
        emitted_ids: Sequence[int] = (),
        chars_sent: int = 0,
        stops: Sequence[str] = (),
        min_tokens: int = 0,
    ) -> None:
        self._decoder = tokens.decoder(prompt_ids)
        self._stops = tuple(s for s in stops if s)
        # A stop string begins at most this far before the text's end, so nothing before it needs to be kept.
        self._held = max((len(s) for s in self._stops), default=1) - 1
        self._min_tokens = min_tokens
        self._count = len(emitted_ids)
        self.chars_sent = chars_sent
        text = "".join(map(self._decoder.step, emitted_ids))
        if chars_sent > len(text):
            raise SeamError(f"chars_sent is {chars_sent}, the {len(emitted_ids)} emitted tokens have {len(text)}")
        self._unsent = text[chars_sent:]

    def push(self, token_ids: Sequence[int], *, ends_by_token: bool = False) -> Pushed:
        """Takes new tokens. `ends_by_token`: the last one stopped the answer and is no text."""
        last = len(token_ids) - 1
        for i, token_id in enumerate(token_ids):
            self._count += 1
            text = "" if ends_by_token and i == last else self._decoder.step(token_id)
            if not text:
                continue
            self._unsent += text
            if self._stops and self._count > self._min_tokens:
                found = self._find(len(text))
                if found is not None:
                    stop, start = found
                    self._unsent = self._unsent[:start]
                    return Pushed(i + 1, stop)
        return Pushed(len(token_ids))

    def _find(self, new_chars: int) -> tuple[str, int] | None:
        """The stop string that is complete first, and where it starts in the unsent text."""
        best: tuple[int, str, int] | None = None
        for stop in self._stops:
            start = self._unsent.find(stop, max(0, len(self._unsent) - new_chars - len(stop) + 1))
            if start >= 0 and (best is None or start + len(stop) < best[0]):
                best = (start + len(stop), stop, start)
        return None if best is None else (best[1], best[2])

    def take(self, *, finished: bool = False) -> str:
        """New text. What could be the start of a stop string stays until the answer is `finished`."""
        held = 0 if finished else self._held
        if not held:
            text, self._unsent = self._unsent, ""
        elif len(self._unsent) > held:
            text, self._unsent = self._unsent[:-held], self._unsent[-held:]
        else:
            return ""
        self.chars_sent += len(text)
        return text
