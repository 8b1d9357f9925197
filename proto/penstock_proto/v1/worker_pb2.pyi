from penstock_proto.v1 import common_pb2 as _common_pb2
from penstock_proto.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerCommand(_message.Message):
    __slots__ = ("hello", "start", "abort", "hand_off", "reject_kv")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    HAND_OFF_FIELD_NUMBER: _ClassVar[int]
    REJECT_KV_FIELD_NUMBER: _ClassVar[int]
    hello: AttachHello
    start: StartLeg
    abort: AbortLeg
    hand_off: HandOffLeg
    reject_kv: RejectKv
    def __init__(self, hello: _Optional[_Union[AttachHello, _Mapping]] = ..., start: _Optional[_Union[StartLeg, _Mapping]] = ..., abort: _Optional[_Union[AbortLeg, _Mapping]] = ..., hand_off: _Optional[_Union[HandOffLeg, _Mapping]] = ..., reject_kv: _Optional[_Union[RejectKv, _Mapping]] = ...) -> None: ...

class AttachHello(_message.Message):
    __slots__ = ("router_id",)
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    def __init__(self, router_id: _Optional[str] = ...) -> None: ...

class StartLeg(_message.Message):
    __slots__ = ("leg_id", "request_id", "token_ids", "emitted", "chars_sent", "sampling", "max_leg_tokens", "kv", "priority", "cache_salt", "adapter", "request_mark")
    LEG_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    EMITTED_FIELD_NUMBER: _ClassVar[int]
    CHARS_SENT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_LEG_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_MARK_FIELD_NUMBER: _ClassVar[int]
    leg_id: int
    request_id: str
    token_ids: bytes
    emitted: int
    chars_sent: int
    sampling: _common_pb2.Sampling
    max_leg_tokens: int
    kv: KvSource
    priority: int
    cache_salt: str
    adapter: str
    request_mark: int
    def __init__(self, leg_id: _Optional[int] = ..., request_id: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., emitted: _Optional[int] = ..., chars_sent: _Optional[int] = ..., sampling: _Optional[_Union[_common_pb2.Sampling, _Mapping]] = ..., max_leg_tokens: _Optional[int] = ..., kv: _Optional[_Union[KvSource, _Mapping]] = ..., priority: _Optional[int] = ..., cache_salt: _Optional[str] = ..., adapter: _Optional[str] = ..., request_mark: _Optional[int] = ...) -> None: ...

class AbortLeg(_message.Message):
    __slots__ = ("leg_id",)
    LEG_ID_FIELD_NUMBER: _ClassVar[int]
    leg_id: int
    def __init__(self, leg_id: _Optional[int] = ...) -> None: ...

class HandOffLeg(_message.Message):
    __slots__ = ("leg_id",)
    LEG_ID_FIELD_NUMBER: _ClassVar[int]
    leg_id: int
    def __init__(self, leg_id: _Optional[int] = ...) -> None: ...

class RejectKv(_message.Message):
    __slots__ = ("kv",)
    KV_FIELD_NUMBER: _ClassVar[int]
    kv: KvSource
    def __init__(self, kv: _Optional[_Union[KvSource, _Mapping]] = ...) -> None: ...

class KvSource(_message.Message):
    __slots__ = ("worker_id", "incarnation", "kv_compat", "num_tokens", "lease_ms", "params")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    KV_COMPAT_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: int
    kv_compat: str
    num_tokens: int
    lease_ms: int
    params: bytes
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., kv_compat: _Optional[str] = ..., num_tokens: _Optional[int] = ..., lease_ms: _Optional[int] = ..., params: _Optional[bytes] = ...) -> None: ...

class StepOutputs(_message.Message):
    __slots__ = ("legs",)
    LEGS_FIELD_NUMBER: _ClassVar[int]
    legs: _containers.RepeatedCompositeFieldContainer[LegOutput]
    def __init__(self, legs: _Optional[_Iterable[_Union[LegOutput, _Mapping]]] = ...) -> None: ...

class LegOutput(_message.Message):
    __slots__ = ("leg_id", "token_ids", "text", "chars_sent", "finish_reason", "stop_reason", "logprobs", "kv", "context", "error")
    LEG_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHARS_SENT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    leg_id: int
    token_ids: bytes
    text: str
    chars_sent: int
    finish_reason: _common_pb2.FinishReason
    stop_reason: str
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprob]
    kv: KvSource
    context: ContextSource
    error: LegError
    def __init__(self, leg_id: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., text: _Optional[str] = ..., chars_sent: _Optional[int] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., stop_reason: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprob, _Mapping]]] = ..., kv: _Optional[_Union[KvSource, _Mapping]] = ..., context: _Optional[_Union[ContextSource, _Mapping]] = ..., error: _Optional[_Union[LegError, _Mapping]] = ...) -> None: ...

class ContextSource(_message.Message):
    __slots__ = ("cached_tokens", "transferred_tokens", "computed_tokens")
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERRED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    cached_tokens: int
    transferred_tokens: int
    computed_tokens: int
    def __init__(self, cached_tokens: _Optional[int] = ..., transferred_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ...) -> None: ...

class LegError(_message.Message):
    __slots__ = ("fault", "field", "message")
    class Fault(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FAULT_UNSPECIFIED: _ClassVar[LegError.Fault]
        CALLER: _ClassVar[LegError.Fault]
        WORKER: _ClassVar[LegError.Fault]
        TRANSFER: _ClassVar[LegError.Fault]
        REFUSED: _ClassVar[LegError.Fault]
        GONE: _ClassVar[LegError.Fault]
    FAULT_UNSPECIFIED: LegError.Fault
    CALLER: LegError.Fault
    WORKER: LegError.Fault
    TRANSFER: LegError.Fault
    REFUSED: LegError.Fault
    GONE: LegError.Fault
    FAULT_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    fault: LegError.Fault
    field: str
    message: str
    def __init__(self, fault: _Optional[_Union[LegError.Fault, str]] = ..., field: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelFile(_message.Message):
    __slots__ = ("name", "data", "last", "model_digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    data: bytes
    last: bool
    model_digest: str
    def __init__(self, name: _Optional[str] = ..., data: _Optional[bytes] = ..., last: _Optional[bool] = ..., model_digest: _Optional[str] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("reason", "leave")
    REASON_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    leave: bool
    def __init__(self, reason: _Optional[str] = ..., leave: _Optional[bool] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("legs", "cut", "duration_s")
    LEGS_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    legs: int
    cut: int
    duration_s: float
    def __init__(self, legs: _Optional[int] = ..., cut: _Optional[int] = ..., duration_s: _Optional[float] = ...) -> None: ...

class DirectRequest(_message.Message):
    __slots__ = ("ticket", "leg")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    LEG_FIELD_NUMBER: _ClassVar[int]
    ticket: _inference_pb2.Ticket
    leg: StartLeg
    def __init__(self, ticket: _Optional[_Union[_inference_pb2.Ticket, _Mapping]] = ..., leg: _Optional[_Union[StartLeg, _Mapping]] = ...) -> None: ...
