from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerReport(_message.Message):
    __slots__ = ("hello", "snapshot", "delta", "load", "cost", "draining", "seen")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    snapshot: KvSnapshot
    delta: KvDelta
    load: LoadReport
    cost: CostReport
    draining: Draining
    seen: SeenRequests
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., snapshot: _Optional[_Union[KvSnapshot, _Mapping]] = ..., delta: _Optional[_Union[KvDelta, _Mapping]] = ..., load: _Optional[_Union[LoadReport, _Mapping]] = ..., cost: _Optional[_Union[CostReport, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., seen: _Optional[_Union[SeenRequests, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("worker_id", "dp_rank", "incarnation", "pool", "role", "role_epoch", "address", "model", "adapters", "model_digest", "kv_compat", "shape", "capacity", "hash", "capabilities")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    DP_RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ROLE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    KV_COMPAT_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    dp_rank: int
    incarnation: int
    pool: str
    role: str
    role_epoch: int
    address: str
    model: str
    adapters: _containers.RepeatedScalarFieldContainer[str]
    model_digest: str
    kv_compat: str
    shape: str
    capacity: Capacity
    hash: HashSettings
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker_id: _Optional[str] = ..., dp_rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., pool: _Optional[str] = ..., role: _Optional[str] = ..., role_epoch: _Optional[int] = ..., address: _Optional[str] = ..., model: _Optional[str] = ..., adapters: _Optional[_Iterable[str]] = ..., model_digest: _Optional[str] = ..., kv_compat: _Optional[str] = ..., shape: _Optional[str] = ..., capacity: _Optional[_Union[Capacity, _Mapping]] = ..., hash: _Optional[_Union[HashSettings, _Mapping]] = ..., capabilities: _Optional[_Iterable[str]] = ...) -> None: ...

class Capacity(_message.Message):
    __slots__ = ("max_running", "max_batched_tokens", "kv_blocks", "block_size", "max_model_len", "vocab_size")
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    max_running: int
    max_batched_tokens: int
    kv_blocks: int
    block_size: int
    max_model_len: int
    vocab_size: int
    def __init__(self, max_running: _Optional[int] = ..., max_batched_tokens: _Optional[int] = ..., kv_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., vocab_size: _Optional[int] = ...) -> None: ...

class HashSettings(_message.Message):
    __slots__ = ("algorithm", "root")
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    algorithm: str
    root: bytes
    def __init__(self, algorithm: _Optional[str] = ..., root: _Optional[bytes] = ...) -> None: ...

class KvSnapshot(_message.Message):
    __slots__ = ("next_seq", "chunk", "last", "hashes")
    NEXT_SEQ_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    next_seq: int
    chunk: int
    last: bool
    hashes: bytes
    def __init__(self, next_seq: _Optional[int] = ..., chunk: _Optional[int] = ..., last: _Optional[bool] = ..., hashes: _Optional[bytes] = ...) -> None: ...

class KvDelta(_message.Message):
    __slots__ = ("seq", "ops")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    OPS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    ops: _containers.RepeatedCompositeFieldContainer[KvOp]
    def __init__(self, seq: _Optional[int] = ..., ops: _Optional[_Iterable[_Union[KvOp, _Mapping]]] = ...) -> None: ...

class KvOp(_message.Message):
    __slots__ = ("kind", "hashes")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[KvOp.Kind]
        STORED: _ClassVar[KvOp.Kind]
        REMOVED: _ClassVar[KvOp.Kind]
        CLEARED: _ClassVar[KvOp.Kind]
    KIND_UNSPECIFIED: KvOp.Kind
    STORED: KvOp.Kind
    REMOVED: KvOp.Kind
    CLEARED: KvOp.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    kind: KvOp.Kind
    hashes: bytes
    def __init__(self, kind: _Optional[_Union[KvOp.Kind, str]] = ..., hashes: _Optional[bytes] = ...) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("running", "waiting", "prefill_tokens", "context_tokens", "kv_usage", "steps", "last_leg_id")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_USAGE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LAST_LEG_ID_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    prefill_tokens: int
    context_tokens: int
    kv_usage: float
    steps: int
    last_leg_id: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., prefill_tokens: _Optional[int] = ..., context_tokens: _Optional[int] = ..., kv_usage: _Optional[float] = ..., steps: _Optional[int] = ..., last_leg_id: _Optional[int] = ...) -> None: ...

class CostReport(_message.Message):
    __slots__ = ("base_s", "prefill_s", "decode_s", "context_s", "samples", "error_p50", "error_p90", "transfer_base_s", "transfer_token_s", "transfers")
    BASE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_S_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ERROR_P50_FIELD_NUMBER: _ClassVar[int]
    ERROR_P90_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_BASE_S_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    base_s: float
    prefill_s: float
    decode_s: float
    context_s: float
    samples: int
    error_p50: float
    error_p90: float
    transfer_base_s: float
    transfer_token_s: float
    transfers: int
    def __init__(self, base_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., decode_s: _Optional[float] = ..., context_s: _Optional[float] = ..., samples: _Optional[int] = ..., error_p50: _Optional[float] = ..., error_p90: _Optional[float] = ..., transfer_base_s: _Optional[float] = ..., transfer_token_s: _Optional[float] = ..., transfers: _Optional[int] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("reason", "deadline_ms")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    deadline_ms: int
    def __init__(self, reason: _Optional[str] = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class SeenRequests(_message.Message):
    __slots__ = ("hashes",)
    HASHES_FIELD_NUMBER: _ClassVar[int]
    hashes: bytes
    def __init__(self, hashes: _Optional[bytes] = ...) -> None: ...

class RouterNotice(_message.Message):
    __slots__ = ("welcome", "resend", "role")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    RESEND_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    resend: Resend
    role: RoleAssignment
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., resend: _Optional[_Union[Resend, _Mapping]] = ..., role: _Optional[_Union[RoleAssignment, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("router_id",)
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    def __init__(self, router_id: _Optional[str] = ...) -> None: ...

class Resend(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RoleAssignment(_message.Message):
    __slots__ = ("role", "epoch")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    role: str
    epoch: int
    def __init__(self, role: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...
