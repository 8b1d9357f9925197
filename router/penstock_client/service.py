"""The service as the SDK shows it: models, workers, SLO attainment; plain immutable values."""

from dataclasses import dataclass

from penstock_proto.v1 import inference_pb2


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    max_model_len: int  # tokens
    created_s: int  # Unix seconds


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    worker_id: str
    pool: str
    role: str
    state: str  # ready, stale or draining
    address: str
    model: str
    running: int
    waiting: int
    kv_usage: float  # 0 to 1
    kv_blocks: int
    legs: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class SloStatus:
    service_class: str
    objective: str  # ttft or tpot
    judged: int
    attained: int


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The service as one router sees it."""

    router_id: str
    uptime_s: float
    open_streams: int
    workers: tuple[WorkerStatus, ...]
    slo: tuple[SloStatus, ...]


def models(reply: inference_pb2.ListModelsResponse) -> tuple[Model, ...]:
    return tuple(Model(card.name, card.max_model_len, card.created_s) for card in reply.models)


def status(reply: inference_pb2.StatusResponse) -> ServiceStatus:
    workers = tuple(
        WorkerStatus(
            worker.worker_id,
            worker.pool,
            worker.role,
            worker.state,
            worker.address,
            worker.model,
            worker.running,
            worker.waiting,
            worker.kv_usage,
            worker.kv_blocks,
            worker.legs,
            worker.incarnation,
        )
        for worker in reply.workers
    )
    slo = tuple(SloStatus(one.service_class, one.objective, one.judged, one.attained) for one in reply.slo)
    return ServiceStatus(reply.router_id, reply.uptime_s, reply.open_streams, workers, slo)
