"""`penstock status`: the service as its router sees it."""

import argparse
from dataclasses import asdict
from typing import Any

from penstock_cli.output import print_json, table
from penstock_cli.service import connect
from penstock_client import Model, ServiceStatus


def status(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        models, found = client.models(timeout_s=10), client.status(timeout_s=10)
        where = client.address
    if arguments.output == "json":
        print_json(document(where, models, found))
    else:
        print("\n".join(lines(where, models, found)))
    return 0


def document(where: str, models: tuple[Model, ...], found: ServiceStatus) -> dict[str, Any]:
    pools: dict[str, dict[str, int]] = {}
    for worker in found.workers:
        pool = pools.setdefault(worker.pool, {"workers": 0, "ready": 0, "running": 0, "waiting": 0})
        pool["workers"] += 1
        pool["ready"] += worker.state == "ready"
        pool["running"] += worker.running
        pool["waiting"] += worker.waiting
    return {
        "address": where,
        "router_id": found.router_id,
        "uptime_s": round(found.uptime_s, 3),
        "open_streams": found.open_streams,
        "models": [asdict(model) for model in models],
        "pools": pools,
        "workers": [asdict(worker) for worker in found.workers],
        "slo": [{**asdict(one), "attainment": one.attained / one.judged if one.judged else None} for one in found.slo],
    }


def lines(where: str, models: tuple[Model, ...], found: ServiceStatus) -> list[str]:
    names = ", ".join(f"{model.name} ({model.max_model_len} tokens)" for model in models) or "none yet"
    out = [
        f"router   {found.router_id} at {where}, up {found.uptime_s:.0f} s, {found.open_streams} open streams",
        f"models   {names}",
        "",
    ]
    header = ["worker", "pool", "role", "state", "running", "waiting", "legs", "kv used", "kv blocks", "address"]
    rows = [
        [
            worker.worker_id,
            worker.pool,
            worker.role,
            worker.state,
            str(worker.running),
            str(worker.waiting),
            str(worker.legs),
            f"{worker.kv_usage * 100:.0f}%",
            str(worker.kv_blocks),
            worker.address,
        ]
        for worker in found.workers
    ]
    out += table(header, rows) if rows else ["no worker has joined"]
    if found.slo:
        rows = [
            [
                one.service_class,
                one.objective,
                str(one.judged),
                f"{100 * one.attained / one.judged:.1f}%" if one.judged else "-",
            ]
            for one in found.slo
        ]
        out += ["", *table(["class", "objective", "judged", "attained"], rows)]
    return out
