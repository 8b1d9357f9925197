"""From a manifest to the configuration of its local processes."""

from pathlib import Path

import pytest
import yaml

from penstock_operator.api import LLMService, default_text, load
from penstock_operator.local.desire import Desired, desire
from penstock_operator.local.environment import child_environment, ray_environment
from penstock_operator.local.state import Run
from penstock_router.config import RouterConfig
from penstock_workers.config import WorkerConfig

RUN = Run(
    name="tiny", run_id="0123456789abcdef", boot_id="b", pid=1, start_ticks=1, http="127.0.0.1:8000", grpc="127.0.0.1:9000",
    reports="127.0.0.1:9001", ray_dir="/tmp/ps-01234567", started_unix_s=0.0, drain_s=30.0,
)  # fmt: skip


def service(**spec: object) -> LLMService:
    document = yaml.safe_load(default_text())
    document["spec"] |= spec
    return load(yaml.safe_dump(document))


def made(given: dict[str, str] | None = None, **spec: object) -> Desired:
    return desire(service(**spec), RUN, Path("/state"), given or {})


def test_the_router_listens_where_the_run_says_and_knows_the_classes() -> None:
    router = RouterConfig.model_validate(made().router)
    assert (router.grpc_listen, router.http_listen, router.reports_listen) == (RUN.grpc, RUN.http, RUN.reports)
    assert [(one.name, one.ttft_s, one.priority) for one in router.classes] == [("interactive", 2.0, 10), ("batch", 60.0, 0)]
    assert router.default_class == "interactive" and router.model == "tiny" and router.grace_s == 30


def test_every_pool_has_workers_that_report_to_this_router_on_free_ports() -> None:
    desired = made()
    assert desired.expected == {"prefill": 1, "decode": 1}
    for name, pool in desired.ray["app"]["pools"].items():
        worker = WorkerConfig.model_validate(pool["worker"])
        assert worker.pool == name and worker.routers == (RUN.reports,) and worker.port == 0
        assert worker.engine == "vllm" and worker.dtype == "float32" and worker.host == "127.0.0.1"


def test_engine_settings_reach_the_workers_under_their_python_names() -> None:
    engine = {"device": "cpu", "args": {"max-model-len": 512, "dtype": "bfloat16"}, "env": [{"name": "A", "value": "b"}]}
    pool = made(engine=engine, topology={"workers": {"replicas": 3}}).ray["app"]["pools"]["workers"]
    assert pool["worker"]["engine_args"] == {"max_model_len": 512} and pool["worker"]["dtype"] == "bfloat16"
    assert pool["env"] == {"A": "b"} and pool["replicas"] == 3


def test_the_fake_engine_is_chosen_by_the_hidden_variable_alone() -> None:
    pools = made({"PENSTOCK_ENGINE": "fake"}).ray["app"]["pools"]
    assert {pool["worker"]["engine"] for pool in pools.values()} == {"fake"}


@pytest.mark.parametrize(("mode", "pools"), [("auto", {"workers": {}}), ("disaggregated", {"prefill": {}, "decode": {}})])
def test_the_topology_says_what_the_router_prefers(mode: str, pools: dict[str, object]) -> None:
    assert made(topology={"mode": mode, **pools}).router["topology_mode"] == mode


def test_ray_is_kept_on_loopback_with_a_token_of_its_own_and_nothing_of_the_callers_ray() -> None:
    given = {"RAY_ADDRESS": "elsewhere:6379", "PENSTOCK_ADDRESS": "x:1", "PATH": "/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    first, second = ray_environment(RUN, given), ray_environment(RUN, given)
    assert first["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0" and first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64 and first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    assert not {"RAY_ADDRESS", "PENSTOCK_ADDRESS", "PYTHONDONTWRITEBYTECODE"} & first.keys()
    assert first["PENSTOCK_RUN_ID"] == RUN.run_id and first["PATH"] == "/bin" and first["SPT_NOENV"] == "1"
    assert "RAY_AUTH_TOKEN" not in child_environment(RUN, given)


def test_loopback_is_added_to_the_hosts_that_need_no_proxy() -> None:
    assert child_environment(RUN, {"no_proxy": "corp"})["no_proxy"] == "corp,127.0.0.1,localhost,::1"
