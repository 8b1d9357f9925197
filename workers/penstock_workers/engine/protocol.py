"""What a worker asks of an engine, and what an engine tells its worker.

Promise: vLLM and the deterministic fake stand behind this one Protocol and pass one contract suite
(tests/workers/engine_contract.py). An engine deals in token ids only; text, stop strings and the
bytes of a token belong to the worker (`penstock_workers.text`).

All methods and all callbacks run on one asyncio loop. Callbacks never block and never raise.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from penstock_proto.v1.common_pb2 import FinishReason, Sampling

Fault = Literal["caller", "worker", "transfer", "refused", "gone"]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts of a started engine; fixed for its incarnation."""

    model: str
    model_dir: str
    model_digest: str  # hex; weights, tokenizer and configs
    kv_compat: str  # hex; equal where KV may move between two engines
    shape: str  # device, model and parallel shape, for pooling cost coefficients
    block_size: int  # tokens
    kv_blocks: int
    max_model_len: int  # tokens
    vocab_size: int
    max_running: int  # requests in one step
    max_batched_tokens: int
    hash_root: bytes  # the parent of a first block, 32 bytes
    kv_lease_s: float
    capabilities: tuple[str, ...] = ()  # of: resume, hand_off, kv_transfer, structured_output, logprobs


@dataclass(frozen=True, slots=True)
class EngineLeg:
    """One leg to run. `key` is unique in the engine's incarnation."""

    key: int
    token_ids: Sequence[int]  # prompt, then the `emitted` ids of earlier legs
    emitted: int
    sampling: Sampling  # every default filled in; stop strings are not the engine's business
    max_leg_tokens: int = 0  # 0: run to the answer's end; else end with LEG_END after so many new tokens
    kv_params: bytes | None = None  # pull the KV described here (HeldKv.params of another engine)
    priority: int = 0  # lower first
    cache_salt: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class HeldKv:
    """KV that this engine keeps after LEG_END until it is pulled, released or its lease ends."""

    params: bytes
    num_tokens: int
    lease_s: float


@dataclass(frozen=True, slots=True)
class ContextSource:
    """Where a leg's context tokens came from; the three add up to len(token_ids)."""

    cached: int
    transferred: int
    computed: int


@dataclass(frozen=True, slots=True)
class Logprob:
    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # best first


@dataclass(slots=True)
class EngineOutput:
    """New tokens of one leg. `finish` is set on the last output and only there."""

    key: int
    token_ids: list[int]
    logprobs: list[Logprob] = field(default_factory=list)
    finish: FinishReason = FinishReason.FINISH_REASON_UNSPECIFIED
    stop_reason: str = ""  # a stop token id as text
    context: ContextSource | None = None  # on the first output
    kv: HeldKv | None = None  # with LEG_END
    fault: Fault | None = None  # with ERROR
    fault_field: str = ""
    fault_message: str = ""


@dataclass(frozen=True, slots=True)
class KvOp:
    """A change of the prefix cache, in order. Hashes are the low 64 bits of vLLM's sha256_cbor block hashes."""

    kind: Literal["stored", "removed", "cleared"]
    hashes: "array[int]"  # typecode "Q"


@dataclass(frozen=True, slots=True)
class StepStats:
    """One engine step."""

    duration_s: float  # 0 where unknown
    prefill_tokens: int  # tokens of prompts computed in this step
    decodes: int  # sequences that decoded one token
    context_tokens: int  # context of those sequences
    running: int  # requests, after the step
    waiting: int
    waiting_tokens: int  # prompt tokens not yet computed, running prefills included
    kv_usage: float  # 0 to 1
    held: int = 0  # legs that ended and whose KV is still held; a change is told by a step, with work or without


@dataclass(frozen=True, slots=True)
class TransferStats:
    """A finished KV pull."""

    tokens: int
    duration_s: float
    failed: bool = False


class EngineSink(Protocol):
    """The worker's side."""

    def on_outputs(self, outputs: list[EngineOutput]) -> None: ...
    def on_kv(self, ops: list[KvOp]) -> None: ...
    def on_step(self, stats: StepStats) -> None: ...
    def on_transfer(self, stats: TransferStats) -> None: ...
    def on_dead(self, reason: str) -> None:
        """The engine is gone; no output follows."""


class Engine(Protocol):
    @property
    def info(self) -> EngineInfo: ...

    async def open(self, sink: EngineSink) -> None:
        """Load and be ready to run legs."""

    def start(self, leg: EngineLeg) -> None:
        """Run a leg. What is wrong with it comes as an output with `fault`, never as an exception."""

    def abort(self, key: int) -> None:
        """End a leg at once: no output for it follows. Unknown keys are ignored."""

    def hand_off(self, key: int) -> None:
        """End a leg at its next token with LEG_END and its KV held. One that waits, pulls or is still prefilled ends so at
        its first token; one that ends first, ends as it would; a second call changes nothing."""

    def release_kv(self, params: bytes) -> None:
        """Free KV held by this engine (HeldKv.params). Unknown or already pulled: ignored."""

    async def check(self) -> None:
        """Returns when the engine is between two steps, raises where it is dead. One that hangs does neither."""

    def kill(self, reason: str) -> None:
        """The worker holds the engine for dead: its processes end now, and nothing is said any more."""

    async def close(self) -> None:
        """Ends the engine and every child process."""
