"""One real service for all tests that do not break it; no time limit where they run in full."""

import os
from collections.abc import Iterator

import pytest
from service import Service, up


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("PENSTOCK_FULL"):
        config.option.timeout = 0


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with up() as running:
        yield running
