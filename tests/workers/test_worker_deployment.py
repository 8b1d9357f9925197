"""The Serve application, without a running Ray."""

from pathlib import Path
from typing import Any

import pytest

from penstock_workers.config import WorkerConfig
from penstock_workers.model.refused import SourceRefused
from penstock_workers.pool.deployment import build_app, start_replica


def pool(name: str, replicas: int, **more: Any) -> dict[str, Any]:
    worker = WorkerConfig.model_validate({"worker_id": name, "pool": name, "engine": "fake", "drain_timeout_s": 7})
    return {"replicas": replicas, "worker": worker.model_dump(mode="json"), **more}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_pools_become_deployments_of_one_application() -> None:
    pytest.importorskip("ray")
    app = build_app(
        {"pools": {"prefill": pool("prefill", 1), "decode": pool("decode", 3, env={"A": "1"}, ray={"resources": {"d": 1}})}}
    )
    first = app._bound_deployment
    assert (first.name, first.num_replicas) == ("prefill", 1)
    others = [x for x in first.init_args if not isinstance(x, dict)]
    assert [o._bound_deployment.name for o in others] == ["decode"]
    decode = others[0]._bound_deployment
    assert decode.num_replicas == 3
    assert decode.ray_actor_options == {"num_cpus": 0, "resources": {"d": 1}, "runtime_env": {"env_vars": {"A": "1"}}}
    assert decode._deployment_config.graceful_shutdown_timeout_s > 7
    assert decode._deployment_config.health_check_period_s == 1
    assert decode.init_args[0]["pool"] == "decode"


async def test_a_replica_s_worker_serves_until_it_is_stopped(worker_model_dir: Path) -> None:
    config = WorkerConfig.model_validate({"engine": "fake", "source": f"file://{worker_model_dir}", "metrics_port": None})
    worker = await start_replica(config)
    try:
        assert worker.address
        await worker.check()
        await worker.drain("test")
    finally:
        await worker.stop()


async def test_a_model_that_cannot_be_had_stops_the_replica_by_name() -> None:
    with pytest.raises(SourceRefused, match="penstock://huge"):
        await start_replica(WorkerConfig.model_validate({"engine": "fake", "source": "penstock://huge"}))
