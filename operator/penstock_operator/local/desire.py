"""From an LLMService to what its local processes are configured with.

Promise: pure; the same service, run and environment give the same configuration, checked by the
router's and the workers' own models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock_operator.api import LLMService, Spec
from penstock_operator.api.engine_args import python_name
from penstock_operator.local.state import Run
from penstock_router.config import RouterConfig, ServiceClass
from penstock_workers.config import WorkerConfig

# Prefill in bfloat16 is several times slower than float32 on CPUs without AVX-512.
_TINY_DTYPE = "float32"
_BUILDER = "penstock_workers.pool.deployment:build_app"


@dataclass(frozen=True, slots=True)
class Desired:
    router: dict[str, Any]
    ray: dict[str, Any]
    expected: Mapping[str, int]  # pool -> workers that must be ready


def desire(service: LLMService, run: Run, folder: Path, given: Mapping[str, str]) -> Desired:
    """PENSTOCK_ENGINE=fake replaces vLLM by the deterministic fake, for tests of whole processes."""
    spec = service.spec
    engine = given.get("PENSTOCK_ENGINE") or "vllm"
    pools = {
        name: {
            "replicas": pool.replicas,
            "env": {variable.name: variable.value or "" for variable in spec.engine.env},
            "worker": _worker(spec, name, run, engine).model_dump(mode="json"),
        }
        for name, pool in spec.topology.pools.items()
    }
    router = _router(service, run).model_dump(mode="json")
    # Below the run's own folder: Ray opens the one it is given to everybody.
    ray = {"ray_dir": f"{run.ray_dir}/r", "num_cpus": 1, "builder": _BUILDER, "app": {"pools": pools}}
    return Desired(router, ray, {name: pool.replicas for name, pool in spec.topology.pools.items()})


def _router(service: LLMService, run: Run) -> RouterConfig:
    spec = service.spec
    classes = tuple(
        ServiceClass(name=one.name, ttft_s=one.ttft, tpot_s=one.tpot, priority=one.priority) for one in spec.slo.classes
    )
    chosen: dict[str, Any] = {"classes": classes, "default_class": spec.slo.default} if classes else {}
    return RouterConfig(
        router_id=f"{run.name}-router-0",
        grpc_listen=run.grpc,
        http_listen=run.http,
        reports_listen=run.reports,
        model=spec.model.served_name,
        topology_mode=spec.topology.mode,
        grace_s=run.drain_s,
        **chosen,
    )


def _worker(spec: Spec, pool: str, run: Run, engine: str) -> WorkerConfig:
    arguments = {python_name(key): value for key, value in spec.engine.args.items()}
    dtype = arguments.pop("dtype", None) or (_TINY_DTYPE if spec.model.source == "penstock://tiny" else None)
    return WorkerConfig.model_validate(
        {
            "worker_id": pool,
            "pool": pool,
            "source": spec.model.source,
            "model": spec.model.served_name,
            "engine": engine,
            "engine_args": arguments,
            "device": spec.engine.device,
            "dtype": dtype,
            "routers": [run.reports],
            "drain_timeout_s": run.drain_s,
        }
    )
