"""The contract on the real API server, and what the fake cannot show: keyed lists, kept forms, errors of the wire."""

import asyncio
from functools import partial

import pytest
from kube.api_contract import ApiContract

from penstock_operator.shell import drift
from penstock_operator.shell.access import Access, from_kubeconfig
from penstock_operator.shell.api_server import ApiServer
from penstock_operator.shell.ports import Kind, Refused, Unreachable

pytestmark = pytest.mark.e2e
SERVICE = Kind("v1", "Service", "services")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")


@pytest.fixture
async def api(cluster):
    client = ApiServer(from_kubeconfig(cluster.kubeconfig), write_timeout_s=5.0)
    yield client
    await client.close()


@pytest.fixture
def foreign(cluster):
    import json

    async def apply(body):
        run = partial(
            cluster.kubectl,
            "apply",
            "--server-side",
            "--force-conflicts",
            "--field-manager=foreign",
            "-f",
            "-",
            text=json.dumps(body),
        )
        await asyncio.to_thread(run)

    return apply


class TestApiServer(ApiContract):
    pass


def _service(namespace, **more):
    meta = {"namespace": namespace, "name": "s"}
    spec = {"selector": {"a": "b"}, "ports": [{"name": "grpc", "port": 9000}, {"name": "http", "port": 8000, "targetPort": 8000}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {**spec, **more}}


async def test_a_keyed_list_is_settled_member_by_member(api, namespace):
    body = _service(namespace)
    live = await api.apply(SERVICE, body)
    assert drift.settled(body, live)
    moved = _service(namespace, ports=[{"name": "grpc", "port": 9001}, {"name": "http", "port": 8000, "targetPort": 8000}])
    assert not drift.settled(moved, live)


async def test_a_value_kept_in_another_form_is_settled_by_its_digest(api, namespace):
    container = {"name": "c", "image": "i", "resources": {"requests": {"cpu": "1000m"}}, "env": [{"name": "A", "value": "1"}]}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}}
    body = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": namespace, "name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template},
    }  # fmt: skip
    live = await api.apply(DEPLOYMENT, body)
    assert not drift.settled(body, live), "the server says 1, not 1000m"
    again = await api.apply(DEPLOYMENT, body)
    assert again["metadata"]["generation"] == live["metadata"]["generation"]
    assert drift.digest(body, again) == drift.digest(body, live)
    container["resources"] = {"requests": {"cpu": "1"}}
    assert drift.settled(body, live)
    container["image"] = "j"
    assert not drift.settled(body, live)


async def test_a_refusal_names_the_field(api, namespace):
    with pytest.raises(Refused, match=r"spec\.ports") as refused:
        await api.apply(SERVICE, _service(namespace, ports=[{"name": "x", "port": 0}]))
    assert refused.value.status == 422


async def test_a_wrong_token_is_refused_and_not_told(cluster):
    access = from_kubeconfig(cluster.kubeconfig)
    client = ApiServer(Access(access.server, access.ca_pem, fixed_token="not-it"), write_timeout_s=5.0)
    with pytest.raises(Refused) as refused:
        await client.list(SERVICE, "default")
    await client.close()
    assert refused.value.status == 401
    assert "not-it" not in str(refused.value) + repr(access)


async def test_no_server_is_unreachable():
    client = ApiServer(Access("http://127.0.0.1:1"), write_timeout_s=1.0)
    with pytest.raises(Unreachable):
        await client.get(SERVICE, "default", "s")
    await client.close()
