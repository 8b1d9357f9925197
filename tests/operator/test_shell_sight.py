"""What a look at everything finds is told, though looks before it failed in their middle."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from kube.fake_api import FakeApi
from kube.standin import CONFIG_MAP, service

from penstock_operator.shell.kinds import LLM_SERVICE
from penstock_operator.shell.ports import Key, Kind, Listing, Refused
from penstock_operator.shell.sight import Sight


class Failing(FakeApi):
    """Its `fails`-th page from now is refused."""

    fails: int = 0

    async def pages(self, kind: Kind, namespace: str | None, selector: str = "", *, bare: bool = False) -> AsyncIterator[Listing]:
        async for page in super().pages(kind, namespace, selector, bare=bare):
            self.fails -= 1
            if self.fails == 0:
                raise Refused(429, "TooManyRequests", "storage is (re)initializing")
            yield page


@pytest.mark.parametrize("page", range(1, 5))
@pytest.mark.parametrize("looks_before", [0, 1])
async def test_a_look_that_fails_in_its_middle_loses_no_news(page: int, looks_before: int) -> None:
    api: Any = Failing()
    sight = Sight(api)
    for _ in range(looks_before):
        await sight.everything([LLM_SERVICE, CONFIG_MAP], ["n"])
    for name in ("a", "b", "c"):
        api.apply_as("person", LLM_SERVICE, service("n", name, configs=1))
    api.fails = page
    try:
        told, _ = await sight.everything([LLM_SERVICE, CONFIG_MAP], ["n"])
    except Refused:
        told, _ = await sight.everything([LLM_SERVICE, CONFIG_MAP], ["n"])
    assert told == {Key("n", "a"), Key("n", "b"), Key("n", "c")}
    api.fails = 0
    if not looks_before:
        assert (await sight.everything([LLM_SERVICE, CONFIG_MAP], ["n"]))[0] == set(), "told once"
