"""Questions of plans are answered within a bound, and never end a reconcile."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar

import pytest
from aiohttp import web
from kube.fake_api import FakeApi
from kube.standin import StandIn, service

from penstock_operator.plan.looks import LogTail, Query
from penstock_operator.plan.reconcile import Plan
from penstock_operator.shell import looker
from penstock_operator.shell.access import Access
from penstock_operator.shell.api_server import ApiServer
from penstock_operator.shell.figures import Figures
from penstock_operator.shell.kinds import LLM_SERVICE
from penstock_operator.shell.looker import Looker, Prometheus
from penstock_operator.shell.ports import Key, Object, Offered, Refused
from penstock_operator.shell.reconciler import Reconciler
from penstock_operator.shell.sight import Sight

Handler = Callable[[web.Request], Any]
QUERY = Query("judged", "sum(up)")
ROWS = [{"metric": {"service_class": "interactive", "objective": "ttft"}, "value": [0, "7"]}]


class Logs:
    def __init__(self, line: Object | Exception) -> None:
        self.line = line

    async def log_line(self, namespace: str, pod: str, container: str) -> Object:
        if isinstance(self.line, Exception):
            raise self.line
        return {**self.line, "of": [namespace, pod, container]}


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Handler], Any]]:
    runners = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def asked(url: str) -> Object:
    prometheus = Prometheus(url)
    try:
        (found,) = await Looker(Logs({}), prometheus).ask("prod", [QUERY])
    finally:
        await prometheus.close()
    return found


async def test_prometheus_rows_are_the_answer(serve: Callable[[Handler], Any]) -> None:
    async def handler(request: web.Request) -> web.Response:
        assert (request.path, request.query["query"]) == ("/prom/api/v1/query", "sum(up)")
        return web.json_response({"status": "success", "data": {"resultType": "vector", "result": ROWS}})

    found = await asked(await serve(handler) + "/prom/")
    assert (found["value"], found["fault"], found["kind"]) == (ROWS, "", "Samples")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [(503, "busy", "gives no answer"), (400, '{"status": "error", "error": "parse error"}', "answers 400: parse error")],
)
async def test_a_prometheus_that_does_not_answer_is_a_fault_that_names_it(
    status: int, body: str, said: str, serve: Callable[[Handler], Any]
) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    url = await serve(handler)
    found = await asked(url)
    assert found["value"] is None and said in found["fault"] and url in found["fault"]


async def test_a_prometheus_that_hangs_is_a_fault_in_time(
    serve: Callable[[Handler], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    monkeypatch.setattr(looker, "ANSWER_WITHIN_S", 0.05)
    found = await asked(await serve(handler))
    assert found["value"] is None and "gives no answer: TimeoutError" in found["fault"]


async def test_a_log_s_line_is_the_answer() -> None:
    line = {"penstock_model": {"done_bytes": 1}}
    (found,) = await Looker(Logs(line), Prometheus("")).ask("prod", [LogTail("a", "model")])
    assert found["value"] == {**line, "of": ["prod", "a", "model"]} and found["metadata"] == {"name": "a"}


async def test_a_log_that_cannot_be_read_is_a_fault() -> None:
    looking = Looker(Logs(Refused(400, "BadRequest", "the container is waiting to start")), Prometheus(""))
    (found,) = await looking.ask("prod", [LogTail("a", "model")])
    assert found["value"] is None and "waiting to start" in found["fault"]


async def test_the_api_server_is_asked_for_one_line_of_the_container(serve: Callable[[Handler], Any]) -> None:
    line = {"penstock_model": {"done_bytes": 1, "total_bytes": 2, "waiting": False}}

    async def handler(request: web.Request) -> web.Response:
        assert request.path == "/api/v1/namespaces/prod/pods/chat-1/log"
        assert dict(request.query) == {"container": "model", "tailLines": "1", "limitBytes": "4096"}
        return web.Response(text=json.dumps(line) + "\n")

    api = ApiServer(Access(await serve(handler)), write_timeout_s=1.0)
    try:
        assert await api.log_line("prod", "chat-1", "model") == line
    finally:
        await api.close()


class Curious(StandIn):
    """Asks of every service, and keeps what it was told."""

    told: ClassVar[list[Object]] = []

    def looks(self, document: Object, children: Sequence[Object]) -> Any:
        return (LogTail(f"{document['metadata']['name']}-0", "model"),)

    def plan(self, document: Object, children: Sequence[Object], offered: Offered, now_s: float) -> Plan:
        self.told[:] = [one for one in children if one["kind"] == "LogTail"]
        return super().plan(document, [one for one in children if one["kind"] != "LogTail"], offered, now_s)


@pytest.mark.parametrize("line", [{"penstock_model": {}}, Refused(500, "InternalError", "the kubelet is away")])
async def test_a_plan_gets_the_answers_among_the_children_and_goes_on_without(line: Object | Exception) -> None:
    api: Any = FakeApi()
    api.apply_as("person", LLM_SERVICE, service("n", "chat", configs=1))
    looking = Looker(Logs(line), Prometheus(""))
    one = Reconciler(api, Curious(), lambda: True, Figures(), lambda: 0.0, "me", Sight(api), looking)
    await one.sight.everything([LLM_SERVICE, *one.kinds], ["n"])
    await one.reconcile(Key("n", "chat"))
    (found,) = Curious.told
    assert found["metadata"] == {"name": "chat-0"} and (found["fault"] != "") == isinstance(line, Exception)
    assert ("create", "ConfigMap", "chat-0") in api.writes or ("patch", "ConfigMap", "chat-0") in api.writes
