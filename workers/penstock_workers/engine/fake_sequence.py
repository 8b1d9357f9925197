"""One leg inside the fake engine: its tokens, its place in the answer, and how it ends.

Promise: `advance` is the only place where a token is made, and it knows nothing of time or of other sequences.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy

from penstock_proto.v1.common_pb2 import FinishReason
from penstock_workers.engine.fake_answer import fake_logprobs, grow_crc, mix, next_id
from penstock_workers.engine.fake_cache import Block
from penstock_workers.engine.protocol import EngineLeg, EngineOutput, Logprob

RUNNING = FinishReason.FINISH_REASON_UNSPECIFIED
_NO_STOPS: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Voice:
    """What a model may say."""

    choices: Sequence[int]
    eos_id: int | None
    eos_probability: float
    max_model_len: int


class Fault(ValueError):
    """A leg that can never run; the caller's doing."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def check_leg(leg: EngineLeg, vocab_size: int, max_model_len: int) -> "array[int]":
    """The leg's ids, its own copy. Raises `Fault` naming the request's field."""
    length = len(leg.token_ids)
    if not length or leg.emitted >= length:
        raise Fault("token_ids", "the prompt is empty")
    if length >= max_model_len:
        raise Fault("token_ids", f"{length} tokens leave no room in a context of {max_model_len}")
    ids = array("I", leg.token_ids)
    largest = int(numpy.frombuffer(ids, dtype=numpy.uint32).max())
    if largest >= vocab_size:
        raise Fault("token_ids", f"token id {largest} is not below {vocab_size}")
    structured = leg.sampling.WhichOneof("structured")
    if structured is not None:
        raise Fault(structured, f"the fake engine has no structured output: {structured}")
    if leg.sampling.HasField("max_tokens") and leg.sampling.max_tokens <= leg.emitted:
        raise Fault("max_tokens", f"max_tokens is {leg.sampling.max_tokens}, {leg.emitted} tokens were already emitted")
    return ids


class FakeSequence:
    """State of a running leg. `computed` tokens have their KV in `blocks`."""

    __slots__ = (
        "_barred", "_bound", "_crc", "_eos", "_logprobs", "_max_tokens", "_min_tokens", "_seed", "_stops", "_voice",
        "blocks", "cached", "complete", "computed", "context_given", "gone", "hand_off", "ids", "key", "kv_params", "made",
        "order", "position", "preempted", "salt", "start_length", "transferred",
    )  # fmt: skip

    def __init__(self, leg: EngineLeg, ids: "array[int]", voice: Voice, order: int) -> None:
        sampling = leg.sampling
        self.key = leg.key
        self.ids = ids
        self.salt = leg.cache_salt
        self.kv_params = leg.kv_params
        self.order = (leg.priority, order)
        self.position = leg.emitted  # tokens of the answer so far
        self.start_length = len(self.ids)
        self.made = 0
        self.blocks: list[Block] = []
        self.complete = 0  # blocks of `blocks` that are in the cache
        self.computed = 0
        self.cached = self.transferred = 0
        self.context_given = self.hand_off = self.gone = self.preempted = False
        self._voice = voice
        self._crc = crc32(self.ids.tobytes())
        self._seed = sampling.seed if sampling.temperature else 0
        self._max_tokens = sampling.max_tokens if sampling.HasField("max_tokens") else 1 << 62
        self._min_tokens = sampling.min_tokens
        self._stops = frozenset(sampling.stop_token_ids) or _NO_STOPS
        self._eos = None if sampling.ignore_eos else voice.eos_id
        self._logprobs = sampling.logprobs if sampling.HasField("logprobs") else None
        self._bound = leg.max_leg_tokens

    @property
    def pending(self) -> int:
        """Tokens whose KV is not computed yet; 1 for a decode."""
        return len(self.ids) - self.computed

    def advance(self, output: EngineOutput, tokens: int) -> None:
        """Makes up to `tokens` tokens into `output`; sets its finish where one ends the leg."""
        for _ in range(tokens):
            early = self.position < self._min_tokens
            bits = mix(self._crc, self.position, self._seed)
            token = next_id(
                bits,
                self._voice.choices,
                stops_barred=self._stops if early else _NO_STOPS,
                eos_id=None if early else self._eos,
                eos_probability=self._voice.eos_probability,
            )
            self._crc = grow_crc(self._crc, token)
            self.ids.append(token)
            self.position += 1
            self.made += 1
            output.token_ids.append(token)
            if self._logprobs is not None:
                best, top = fake_logprobs(bits, token, self._voice.choices, self._logprobs)
                output.logprobs.append(Logprob(token, best, top))
            if self._ended(token, output):
                return

    def _ended(self, token: int, output: EngineOutput) -> bool:
        if token == self._eos:
            output.finish = FinishReason.STOP
        elif token in self._stops and self.position >= self._min_tokens:
            output.finish, output.stop_reason = FinishReason.STOP, str(token)
        elif self.position >= self._max_tokens or len(self.ids) >= self._voice.max_model_len:
            output.finish = FinishReason.LENGTH
        elif self.hand_off or (self._bound and self.made >= self._bound):
            output.finish = FinishReason.LEG_END
        return output.finish != RUNNING
