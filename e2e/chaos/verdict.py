"""The judge of one stream: what it must say is known, so every departure has a name.

Promise: pure. A stream is right only if its tokens, its text, its finish and its count are exactly the expected ones, each
sent once and in order; whatever else happens is refused, broken with its router, or a defect.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

RIGHT: Final = "right"
REFUSED: Final = "refused"  # typed, before the first token: asked again elsewhere
ROUTER_BROKEN: Final = "router_broken"  # its router was killed under it: asked again as a new request
LOST: Final = "lost"
DOUBLED: Final = "doubled"
WRONG: Final = "wrong"
HUNG: Final = "hung"
DEFECTS: Final = (LOST, DOUBLED, WRONG, HUNG)

REFUSALS: Final = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


@dataclass(frozen=True, slots=True)
class Expected:
    """The right answer."""

    ids: tuple[int, ...]
    text: str
    finish: str  # stop or length


@dataclass(frozen=True, slots=True)
class Seen:
    """How far a stream has come. `fault` is the first departure."""

    tokens: int = 0
    chars: int = 0
    finish: str = ""
    counted: int = -1  # completion tokens that the service says
    fault: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """How the call ended. `hung`: the client gave up on it."""

    code: str
    message: str = ""
    router_died: bool = False
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: str
    detail: str = ""


def hear(seen: Seen, expected: Expected, ids: Sequence[int] | None, text: str, finish: str = "", counted: int = -1) -> Seen:
    """One message. `ids` None: the front tells text only."""
    if seen.fault:
        return seen
    if seen.finish:
        return replace(seen, fault=DOUBLED, detail=f"a message after the finish {seen.finish!r}")
    tokens, chars = seen.tokens, seen.chars
    if ids is not None:
        fault = _departs(expected.ids, tokens, tuple(ids))
        if fault:
            return replace(seen, fault=fault, detail=f"{len(ids)} tokens after {tokens} of {len(expected.ids)}: {list(ids)[:8]}")
        tokens += len(ids)
    fault = _departs(expected.text, chars, text)
    if fault:
        return replace(seen, fault=fault, detail=f"text after {chars} of {len(expected.text)} characters: {text[:40]!r}")
    return Seen(tokens, chars + len(text), finish, counted if counted >= 0 else seen.counted)


def _departs(whole: Sequence[object], position: int, part: Sequence[object]) -> str:
    """The name of the fault where `part` is not what follows `position`."""
    size = len(part)
    if whole[position : position + size] == part:
        return ""
    if any(whole[start : start + size] == part for start in range(position)):
        return DOUBLED
    return WRONG


def judge(seen: Seen, expected: Expected, end: End, *, tells_ids: bool = True) -> Verdict:
    if seen.fault:
        return Verdict(seen.fault, seen.detail)
    began = seen.tokens > 0 or seen.chars > 0
    at = f"after {seen.tokens} of {len(expected.ids)} tokens, {seen.chars} of {len(expected.text)} characters"
    if end.hung:
        return Verdict(HUNG, f"no progress {at}")
    if end.code == "OK":
        return _ended(seen, expected, at, tells_ids)
    if end.router_died:
        return Verdict(ROUTER_BROKEN if began else REFUSED, f"{end.code} {at}")
    if not began and end.code in REFUSALS:
        return Verdict(REFUSED, f"{end.code}: {end.message}")
    return Verdict(LOST, f"{end.code} {at}: {end.message}")


def _ended(seen: Seen, expected: Expected, at: str, tells_ids: bool) -> Verdict:
    if not seen.finish:
        return Verdict(LOST, f"OK without a finish {at}")
    if (tells_ids and seen.tokens < len(expected.ids)) or seen.chars < len(expected.text):
        return Verdict(LOST, f"finish {seen.finish!r} {at}")
    if seen.finish != expected.finish:
        return Verdict(WRONG, f"finish {seen.finish!r}, expected {expected.finish!r}")
    if seen.counted != len(expected.ids):
        return Verdict(WRONG, f"usage counts {seen.counted} tokens, the answer has {len(expected.ids)}")
    return Verdict(RIGHT)
