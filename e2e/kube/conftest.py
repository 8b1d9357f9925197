"""Real clusters for tests: a test that asks for one says so, and is skipped with the reason where there can be none."""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest
from kube.asked import or_skip
from kube.control import Cluster, control_plane
from kube.faults import Proxy, proxy
from kube.operators import Nursery, nursery
from kube.stage import stage
from kube.standin import CRD


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A line for the person who waits, past pytest's capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def tell(line: str) -> None:
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            print(f"\n{line}", flush=True)

    return tell


@pytest.fixture(scope="session")
def cluster(say: Callable[[str], None]) -> Iterator[Cluster]:
    """One API server for the session; tests make namespaces of their own."""
    with or_skip(control_plane, say) as found:
        yield found


@pytest.fixture(scope="session")
def staged(say: Callable[[str], None]) -> Iterator[Cluster]:
    """A control plane of its own: the product's definitions, and a stand-in for everything that would run pods."""
    with or_skip(stage, say) as found:
        yield found


@pytest.fixture(scope="session")
def crd(cluster: Cluster) -> None:
    """An LLMService that takes anything: the shell's tests have a plan of their own."""
    cluster.apply(CRD)
    cluster.established(CRD["metadata"]["name"])


@pytest.fixture(scope="session")
def operators(crd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery(tmp_path_factory.mktemp("operators")) as made:
        yield made


@pytest.fixture
def days(cluster: Cluster) -> Iterator[Callable[[], Proxy]]:
    """Makes proxies to the API server, one for each operator."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(proxy(cluster.server, cluster.ca_pem, cluster.token))


_numbers = itertools.count()


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"t{next(_numbers)}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
