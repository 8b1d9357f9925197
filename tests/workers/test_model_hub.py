"""A hub's model lies in the cache whole and checked, fetched by huggingface_hub from a server; or it is refused with a reason."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_standins import FILES, Hub, content, served

from penstock_workers.model.hub import Fetcher
from penstock_workers.model.progress import Progress, Say, silent
from penstock_workers.model.refused import SourceRefused, SourceUnavailable
from penstock_workers.model.retry import Retry
from penstock_workers.model.source import resolve

SOURCE = "hf://org/chat"
pytestmark = pytest.mark.slow
QUICK = Retry(tries=3, first_s=0.001, longest_s=0.002)


@pytest.fixture
def hub() -> Iterator[Hub]:
    world = Hub()
    with served(world):
        yield world


def fetch(hub: Hub, cache: Path, say: Say = silent, source: str = SOURCE, token: str = "") -> Path:
    environ = {"HF_ENDPOINT": hub.url, **({"HF_TOKEN": token} if token else {})}
    return resolve(source, cache, say, environ, QUICK, every_s=0.005)


def refused(hub: Hub, cache: Path, source: str = SOURCE, token: str = "") -> SourceRefused:
    with pytest.raises(SourceRefused) as caught:
        fetch(hub, cache, source=source, token=token)
    assert not token or token not in str(caught.value)
    return caught.value


def test_what_engines_read_lies_in_the_cache_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    assert content(fetch(hub, tmp_path)) == FILES


def test_a_second_fetch_asks_for_no_file(hub: Hub, tmp_path: Path) -> None:
    first = fetch(hub, tmp_path)
    hub.asked.clear()
    assert fetch(hub, tmp_path) == first and not [path for _, path, _ in hub.asked if "/resolve/" in path]


@pytest.mark.parametrize("revision", ["v1", "main"])
def test_a_revision_is_asked_for(revision: str, hub: Hub, tmp_path: Path) -> None:
    assert fetch(hub, tmp_path, source=f"{SOURCE}@{revision}").name == hub.commit
    assert any(path.endswith(f"/revision/{revision}") for _, path, _ in hub.asked)


def test_a_file_with_the_wrong_bytes_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.faults.spoil = {"model-00001-of-00002.safetensors": 1, "config.json": 1}
    assert content(fetch(hub, tmp_path)) == FILES


def test_a_file_that_was_spoilt_in_the_cache_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    file = fetch(hub, tmp_path) / "tokenizer.json"
    file.resolve().write_bytes(bytes(len(FILES["tokenizer.json"])))
    assert content(fetch(hub, tmp_path)) == FILES


def test_files_that_stay_wrong_are_refused(hub: Hub, tmp_path: Path) -> None:
    hub.faults.spoil = {"tokenizer.json": 99}
    assert refused(hub, tmp_path).code == "ModelCorrupt"


def test_a_private_model_is_fetched_with_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_right"
    assert content(fetch(hub, tmp_path, token="hf_right")) == FILES


@pytest.mark.parametrize(("token", "gated"), [("hf_wrong", False), ("", False), ("hf_wrong", True)])
def test_a_wrong_token_is_refused_at_once(token: str, gated: bool, hub: Hub, tmp_path: Path) -> None:
    hub.token, hub.gated = "hf_right", gated
    error = refused(hub, tmp_path, token=token)
    assert (error.code, len(hub.asked)) == ("ModelAccessDenied", 1) and "token" in error.reason


def test_a_model_that_does_not_exist_is_refused_by_name(hub: Hub, tmp_path: Path) -> None:
    hub.exists = False
    error = refused(hub, tmp_path)
    assert error.code == "ModelNotFound" and SOURCE in str(error) and "no such model" in error.reason


def test_a_revision_that_does_not_exist_is_refused_by_name(hub: Hub, tmp_path: Path) -> None:
    error = refused(hub, tmp_path, source=f"{SOURCE}@v9")
    assert error.code == "ModelNotFound" and "'v9'" in error.reason


def test_a_repository_without_a_config_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.files["config.json"]
    error = refused(hub, tmp_path)
    assert error.code == "ModelNotFound" and "config.json" in error.reason


def test_a_hub_that_is_away_is_asked_again_and_not_for_ever(hub: Hub, tmp_path: Path) -> None:
    hub.faults.refuse = 2
    assert content(fetch(hub, tmp_path)) == FILES
    hub.faults.refuse = 99
    error = refused(hub, tmp_path / "other")
    assert isinstance(error, SourceUnavailable) and "503" in error.reason and hub.faults.refuse == 96


def test_what_a_busy_hub_asks_for_is_waited_for(hub: Hub, tmp_path: Path) -> None:
    hub.faults.refuse, hub.faults.retry_after_s, slept = 1, 7, list[float]()
    environ, retry = {"HF_ENDPOINT": hub.url}, Retry(first_s=0.001)
    Fetcher(SOURCE, "org/chat", None, tmp_path, environ, silent, retry, 0.005, slept.append).fetch()
    assert slept == [7.0]


def test_a_hub_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="the hub cannot be reached: ConnectError"):
        resolve(SOURCE, tmp_path, environ={"HF_ENDPOINT": "http://127.0.0.1:9"}, retry=QUICK)


def test_a_model_that_was_fetched_is_served_when_the_hub_is_away(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fetch(hub, tmp_path)
    hub.faults.refuse = 99
    assert fetch(hub, tmp_path) == first and "serving the model as it was last fetched" in caplog.text


def test_fetchers_of_one_cache_fetch_each_file_once(hub: Hub, tmp_path: Path) -> None:
    said: list[Progress] = []
    found: list[Path] = []
    with hub.hold:
        threads = [threading.Thread(target=lambda: found.append(fetch(hub, tmp_path, said.append))) for _ in range(3)]
        for thread in threads:
            thread.start()
        while sum(one.waiting for one in list(said)) < 2:
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and content(found[0]) == FILES
    assert [len(hub.bytes_sent(name)) for name in FILES] == [1] * len(FILES)


def test_progress_ends_at_the_whole(hub: Hub, tmp_path: Path) -> None:
    said: list[Progress] = []
    fetch(hub, tmp_path, said.append)
    total = sum(map(len, FILES.values()))
    assert (said[0].done_bytes, said[-1].done_bytes, said[-1].total_bytes) == (0, total, total)
