"""The fake API server keeps the contract that the real one keeps."""

import pytest
from kube.api_contract import ApiContract
from kube.fake_api import FakeApi

from penstock_operator.shell.ports import Kind


@pytest.fixture
def api():
    return FakeApi()


@pytest.fixture
def namespace():
    return "n"


@pytest.fixture
def foreign(api):
    async def apply(body):
        api.apply_as("foreign", Kind("v1", "ConfigMap", "configmaps"), body)

    return apply


class TestFakeApi(ApiContract):
    pass
