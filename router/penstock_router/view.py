"""What people and scrapes read of a router.

Promise: reading changes nothing.
"""

from typing import TYPE_CHECKING

from penstock_proto.v1.inference_pb2 import StatusResponse, WorkerStatus

if TYPE_CHECKING:
    from .dispatch import Dispatcher


def status_of(core: "Dispatcher") -> StatusResponse:
    now = core.now()
    out = StatusResponse(router_id=core.config.router_id, open_streams=len(core.open_answers), uptime_s=now - core.started_at)
    for member in sorted(core.fleet.members.values(), key=lambda m: m.name):
        hello, load = member.hello, member.load
        out.workers.append(
            WorkerStatus(
                worker_id=member.name,
                pool=hello.pool,
                role=hello.role,
                state=core.fleet.state(member, now),
                address=hello.address,
                model=hello.model,
                running=load.running,
                waiting=load.waiting,
                kv_usage=load.kv_usage,
                kv_blocks=core.fleet.index.held(member.slot),
                legs=member.legs,
                incarnation=hello.incarnation,
            )
        )
    out.slo.extend(core.figures.slo())
    return out


def register_gauges(core: "Dispatcher") -> None:
    gauge = core.metrics.gauge
    waiting = "Prompt tokens of requests that wait; text not yet tokenized counts a quarter of its characters."
    gauge("penstock_router_queue_requests", "Requests that wait for a worker.", (), lambda: [((), len(core.held))])
    gauge("penstock_router_queue_tokens", waiting, (), lambda: [((), core.held.tokens())])
    gauge("penstock_router_workers", "Workers by state.", ("pool", "role", "state"), lambda: core.fleet.count(core.now()))
    blocks = "KV blocks known, each once per worker that holds it."
    gauge("penstock_router_index_blocks", blocks, (), lambda: [((), core.fleet.index.blocks())])
    kept = "Tokenized text kept for reuse; at most text_cache_mib per model."
    gauge("penstock_router_text_cache_bytes", kept, (), lambda: [((), float(core.model_store.cached_bytes()))])
    gauge("penstock_router_open_streams", "Answers being made.", (), lambda: [((), len(core.open_answers))])
    panic = "1 while staleness is ignored because most workers look stale."
    gauge("penstock_router_panic", panic, (), lambda: [((), float(core.fleet.panic))])
