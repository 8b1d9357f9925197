import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from inference_fake import FakeInference, Script, ThreadedFake, serve


@pytest.fixture
def threaded() -> Iterator[Callable[[Script], tuple[str, FakeInference]]]:
    made: list[ThreadedFake] = []

    def make(script: Script) -> tuple[str, FakeInference]:
        made.append(ThreadedFake(script))
        return made[-1].address, made[-1].fake

    yield make
    for one in made:
        one.close()


@pytest.fixture
async def serving() -> AsyncIterator[Callable[[Script], Awaitable[tuple[str, FakeInference]]]]:
    servers = []

    async def make(script: Script) -> tuple[str, FakeInference]:
        server, address, fake = await serve(script)
        servers.append(server)
        return address, fake

    yield make
    for server in servers:
        await server.stop(0)
