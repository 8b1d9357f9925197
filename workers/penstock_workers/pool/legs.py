"""The leg table of one worker: what routers asked for, as engine legs, and what the engine says, as their outputs.

Promise: every output goes to the Attach stream that started its leg; after a leg's last output, its abort or its stream's end
nothing more is said of it. No I/O and no clock: what the engine has to be told comes back as values.
"""

import sys
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from penstock_proto.v1.common_pb2 import FinishReason, TokenLogprob
from penstock_proto.v1.worker_pb2 import ContextSource, KvSource, LegError, LegOutput, StartLeg
from penstock_workers.engine.protocol import EngineLeg, EngineOutput, Fault, HeldKv, Logprob
from penstock_workers.text import LegText, SeamError, Tokens

_FAULTS = {
    "caller": LegError.CALLER,
    "worker": LegError.WORKER,
    "transfer": LegError.TRANSFER,
    "refused": LegError.REFUSED,
    "gone": LegError.GONE,
}
RUNNING, STOP, LENGTH = FinishReason.FINISH_REASON_UNSPECIFIED, FinishReason.STOP, FinishReason.LENGTH
LEG_END, ERROR = FinishReason.LEG_END, FinishReason.ERROR
# A leg started while a step runs reaches an engine in another process one step later, its report one after that.
_STEPS_UNTIL_COVERED = 2
_PRIME = 512  # prompt tokens that a decoder may look at
_HELD_KEPT = 1024  # ended legs of a stream whose KV an abort may still free


@dataclass(frozen=True, slots=True)
class Identity:
    """Who holds the KV of ended legs."""

    worker_id: str
    incarnation: int
    kv_compat: str


@dataclass(slots=True)
class Leg:
    key: int
    attach: int
    leg_id: int
    request_id: str
    text: LegText
    began_at_step: int
    logprobs: bool
    seen: bool = False  # the engine has said something of it
    mark: int = 0  # of a request that its client named, until its first token


@dataclass(slots=True)
class _Attach:
    router_id: str
    legs: dict[int, Leg] = field(default_factory=dict)
    uncovered: deque[int] = field(default_factory=deque)  # leg ids in the order they came
    covered: int = 0
    held: dict[int, bytes] = field(default_factory=dict)  # KV params by leg that ended with LEG_END


@dataclass(slots=True)
class Translated:
    """A step's outputs by Attach stream, and what the engine must be told."""

    outputs: dict[int, list[LegOutput]] = field(default_factory=dict)
    aborts: list[int] = field(default_factory=list)
    releases: list[bytes] = field(default_factory=list)
    ended: list[tuple[Leg, int, str]] = field(default_factory=list)  # leg, finish, fault


class LegTable:
    """Mutable, one owner, synchronous."""

    def __init__(self, identity: Identity, tokens: Tokens) -> None:
        self.identity = identity
        self.refuses = ""  # why no leg may start
        self.began: list[int] = []  # marks of requests that got a token, for the next reports
        self._tokens = tokens
        self._legs: dict[int, Leg] = {}
        self._attaches: dict[int, _Attach] = {}
        self._keys = 0
        self._steps = 0

    def __len__(self) -> int:
        return len(self._legs)

    @property
    def attaches(self) -> int:
        return len(self._attaches)

    # --- commands -----------------------------------------------------------------------------------------------------

    def open(self, router_id: str) -> int:
        self._keys += 1
        self._attaches[self._keys] = _Attach(router_id)
        return self._keys

    def close(self, attach: int) -> list[int]:
        """The stream broke: forgets its legs and returns their engine keys, to abort."""
        stream = self._attaches.pop(attach, None)
        keys = [leg.key for leg in stream.legs.values()] if stream else []
        for key in keys:
            del self._legs[key]
        return keys

    def start(self, attach: int, command: StartLeg) -> EngineLeg | LegOutput:
        """The engine's leg, or why there is none."""
        stream = self._attaches[attach]
        leg_id = command.leg_id
        if self.refuses:
            return failed(leg_id, "refused", "", self.refuses)
        if leg_id in stream.legs:
            return failed(leg_id, "caller", "leg_id", f"leg {leg_id} is running")
        if command.adapter:
            return failed(leg_id, "caller", "model", f"adapter {command.adapter!r} is not served")
        if len(command.token_ids) % 4:
            return failed(leg_id, "caller", "token_ids", f"{len(command.token_ids)} bytes are no uint32 ids")
        if command.HasField("kv") and command.kv.kv_compat != self.identity.kv_compat:
            return failed(leg_id, "transfer", "", "the KV is of another kv_compat")
        ids = ids_of(command.token_ids)
        prompt = len(ids) - command.emitted
        if prompt < 0:
            return failed(leg_id, "caller", "emitted", f"{command.emitted} of {len(ids)} tokens cannot be emitted")
        sampling = command.sampling
        try:
            prime = ids[max(0, prompt - _PRIME) : prompt]
            text = LegText(
                self._tokens, prime, ids[prompt:], command.chars_sent, sampling.stop, sampling.min_tokens
            )  # fmt: skip
        except SeamError as error:
            return failed(leg_id, "caller", "chars_sent", str(error))
        self._keys += 1
        leg = Leg(self._keys, attach, leg_id, command.request_id, text, self._steps, sampling.HasField("logprobs"))
        leg.mark = command.request_mark
        self._legs[leg.key] = stream.legs[leg_id] = leg
        stream.uncovered.append(leg_id)
        if len(stream.uncovered) > _HELD_KEPT:
            self._cover(stream)  # a router that attached and never joined asks for no load
        return EngineLeg(
            key=leg.key,
            token_ids=ids,
            emitted=command.emitted,
            sampling=sampling,
            max_leg_tokens=command.max_leg_tokens,
            kv_params=command.kv.params if command.HasField("kv") else None,
            priority=command.priority,
            cache_salt=command.cache_salt,
            request_id=command.request_id,
        )

    def abort(self, attach: int, leg_id: int) -> tuple[int | None, bytes | None]:
        """The engine key to abort; or, where the leg has just ended with its KV held, the params to release."""
        stream = self._attaches[attach]
        leg = stream.legs.pop(leg_id, None)
        if leg is not None:
            del self._legs[leg.key]
            return leg.key, None
        # The abort crossed the leg's end: nobody else will free this KV before its lease is over.
        return None, stream.held.pop(leg_id, None)

    def hand_off(self, attach: int, leg_id: int) -> int | None:
        leg = self._attaches[attach].legs.get(leg_id)
        return leg.key if leg else None

    # --- outputs ------------------------------------------------------------------------------------------------------

    def translate(self, outputs: Sequence[EngineOutput]) -> Translated:
        out = Translated()
        by_attach = out.outputs
        for output in outputs:
            leg = self._legs.get(output.key)
            if leg is None:
                continue
            leg.seen = True
            message = self._message(leg, output, out)
            known = by_attach.get(leg.attach)
            if known is None:
                by_attach[leg.attach] = [message]
            else:
                known.append(message)
        return out

    def _message(self, leg: Leg, output: EngineOutput, out: Translated) -> LegOutput:
        finish, stop, ids = output.finish, output.stop_reason, output.token_ids
        if leg.mark and ids:
            self.began.append(leg.mark)
            leg.mark = 0
        text = leg.text
        pushed = text.push(ids, ends_by_token=finish == STOP)
        if pushed.stop:
            if finish == RUNNING:
                out.aborts.append(leg.key)
            if output.kv is not None:
                out.releases.append(output.kv.params)
            finish, stop, ids = STOP, pushed.stop, ids[: pushed.kept]
        new = text.take(finished=finish in (STOP, LENGTH))
        message = LegOutput(leg_id=leg.leg_id, token_ids=bytes_of(ids), text=new, chars_sent=text.chars_sent)
        if leg.logprobs:
            message.logprobs.extend(self._logprob(p) for p in output.logprobs[: len(ids)])
        if output.context is not None:
            context = output.context
            message.context.CopyFrom(
                ContextSource(
                    cached_tokens=context.cached,
                    transferred_tokens=context.transferred,
                    computed_tokens=context.computed,
                )
            )
        if finish != RUNNING:
            message.finish_reason = finish
            message.stop_reason = stop
            self._end(leg, finish, output, message, out)
        return message

    def _end(self, leg: Leg, finish: int, output: EngineOutput, message: LegOutput, out: Translated) -> None:
        del self._legs[leg.key]
        stream = self._attaches[leg.attach]
        del stream.legs[leg.leg_id]
        out.ended.append((leg, finish, output.fault or ""))
        if finish == LEG_END and output.kv is not None:
            message.kv.CopyFrom(self._source(output.kv))
            stream.held[leg.leg_id] = output.kv.params
            if len(stream.held) > _HELD_KEPT:
                del stream.held[next(iter(stream.held))]
        if finish == ERROR:
            message.error.CopyFrom(_error(output.fault or "worker", output.fault_field, output.fault_message))

    def _source(self, kv: HeldKv) -> KvSource:
        return KvSource(
            worker_id=self.identity.worker_id,
            incarnation=self.identity.incarnation,
            kv_compat=self.identity.kv_compat,
            num_tokens=kv.num_tokens,
            lease_ms=int(kv.lease_s * 1000),
            params=kv.params,
        )

    def _logprob(self, p: Logprob) -> TokenLogprob:
        spell = self._tokens.bytes_of
        top = [TokenLogprob(token_id=i, token=spell(i), logprob=value) for i, value in p.top]
        return TokenLogprob(token_id=p.token_id, token=spell(p.token_id), logprob=p.logprob, top=top)

    def fail_all(self, fault: Fault, message: str) -> Translated:
        """Ends every leg with this fault; the engine must be told of each."""
        out = Translated()
        for leg in self._legs.values():
            out.outputs.setdefault(leg.attach, []).append(failed(leg.leg_id, fault, "", message))
            out.aborts.append(leg.key)
            out.ended.append((leg, ERROR, fault))
        self._legs.clear()
        for stream in self._attaches.values():
            stream.legs.clear()
        return out

    # --- load ---------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        self._steps += 1

    def covered(self, router_id: str) -> int:
        """The highest leg of this router up to which the engine's last figures include every one."""
        highest = 0
        for stream in self._attaches.values():
            if stream.router_id == router_id:
                self._cover(stream)
                highest = max(highest, stream.covered)
        return highest

    def _cover(self, stream: _Attach) -> None:
        while stream.uncovered:
            leg = stream.legs.get(stream.uncovered[0])
            if leg is not None and not leg.seen and self._steps - leg.began_at_step < _STEPS_UNTIL_COVERED:
                break
            stream.covered = max(stream.covered, stream.uncovered.popleft())


def ids_of(data: bytes) -> "array[int]":
    ids = array("I", data)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def bytes_of(ids: Iterable[int]) -> bytes:
    data = array("I", ids)
    if sys.byteorder == "big":
        data.byteswap()
    return data.tobytes()


def _error(fault: Fault, name: str, message: str) -> LegError:
    return LegError(fault=_FAULTS[fault], field=name, message=message)


def failed(leg_id: int, fault: Fault, name: str, message: str) -> LegOutput:
    return LegOutput(leg_id=leg_id, finish_reason=ERROR, error=_error(fault, name, message))
