"""One real service for all tests that do not break it."""

from collections.abc import Iterator

import pytest
from service import Service, up


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with up() as running:
        yield running
