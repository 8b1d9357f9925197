"""What the fake engine answers: a known function of every token before, so that a wrong continuation shows.

Promise: `fake_answer` gives what a `FakeEngine` generates, whatever the legs were. Token k of an answer depends on all ids of
the context, on k and on the seed: a lost, added or changed id, or a wrong count of emitted ids, changes what follows.
"""

from array import array
from collections.abc import Collection, Sequence
from zlib import crc32

from penstock_workers.text import Tokens

_MASK = (1 << 64) - 1


def readable_ids(tokens: Tokens) -> "array[int]":
    """Ids that are whole printable text by themselves."""
    vocab = range(tokens.tokenizer.get_vocab_size())
    spelled = ((i, tokens.bytes_of(i)) for i in vocab if i not in tokens.special)
    return array("I", [i for i, b in spelled if b and b.isascii() and b.decode().isprintable()])


def plain_ids(tokens: Tokens) -> "array[int]":
    """Every id but the special ones; alone they may be part of a character."""
    return array("I", [i for i in range(tokens.tokenizer.get_vocab_size()) if i not in tokens.special])


def mix(context_crc: int, position: int, seed: int) -> int:
    """64 well-mixed bits (splitmix64's finaliser)."""
    x = (context_crc * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + seed * 0x8CB92BA72F3D8DD7 + 1) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def grow_crc(context_crc: int, token_id: int) -> int:
    return crc32(token_id.to_bytes(4, "little"), context_crc)


def next_id(
    bits: int,
    choices: Sequence[int],
    *,
    stops_barred: Collection[int] = (),
    eos_id: int | None = None,
    eos_probability: float = 0.0,
) -> int:
    """The token that `mix`'s bits choose. `stops_barred`: ids not allowed yet (min_tokens)."""
    if eos_id is not None and (bits >> 40) < eos_probability * (1 << 24):
        return eos_id
    index = bits % len(choices)
    chosen = choices[index]
    for _ in range(len(choices) if stops_barred else 0):
        if chosen not in stops_barred:
            break
        index = (index + 1) % len(choices)
        chosen = choices[index]
    return chosen


def fake_answer(
    prompt_ids: Sequence[int],
    count: int,
    *,
    choices: Sequence[int],
    seed: int = 0,
    stop_token_ids: Collection[int] = (),
    min_tokens: int = 0,
    eos_id: int | None = None,
    eos_probability: float = 0.0,
) -> list[int]:
    """The answer to `prompt_ids`: `count` tokens, fewer where a stop or end-of-sequence token ends it.

    `choices` is `readable_ids` or `plain_ids` of the model; `eos_id` None stands for ignore_eos. Greedy sampling has seed 0.
    """
    crc = crc32(array("I", prompt_ids).tobytes())
    out: list[int] = []
    while len(out) < count:
        early = len(out) < min_tokens
        token = next_id(
            mix(crc, len(out), seed),
            choices,
            stops_barred=stop_token_ids if early else (),
            eos_id=None if early else eos_id,
            eos_probability=eos_probability,
        )
        out.append(token)
        crc = grow_crc(crc, token)
        if token == eos_id or token in stop_token_ids:
            break
    return out


def fake_logprobs(bits: int, chosen: int, choices: Sequence[int], count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """A log probability and `count` alternatives, the chosen id the best."""
    best = -(bits % 1000) / 2000.0
    start = bits >> 32
    others = (choices[(start + i) % len(choices)] for i in range(count + 1))
    ranked = [chosen, *(i for i in others if i != chosen)][:count]
    return best, tuple((token, best - 0.25 * rank) for rank, token in enumerate(ranked))
