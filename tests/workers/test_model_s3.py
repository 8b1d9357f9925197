"""A bucket's model lies in the cache whole and checked, whatever the server does; or it is refused with the reason."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_standins import FILES, S3, content, served

from penstock_workers.model.progress import Progress, Say, silent
from penstock_workers.model.refused import SourceRefused, SourceUnavailable
from penstock_workers.model.retry import Retry
from penstock_workers.model.source import resolve

SOURCE = "s3://models/team/chat"
pytestmark = pytest.mark.slow
QUICK = Retry(tries=3, first_s=0.001, longest_s=0.002)


@pytest.fixture
def s3() -> Iterator[S3]:
    world = S3()
    with served(world):
        yield world


def fetch(s3: S3, cache: Path, say: Say = silent, source: str = SOURCE, retry: Retry = QUICK, **more: str) -> Path:
    return resolve(source, cache, say, s3.environ(**more), retry, every_s=0.005)


def refused(s3: S3, cache: Path, source: str = SOURCE, **more: str) -> SourceRefused:
    with pytest.raises(SourceRefused) as caught:
        fetch(s3, cache, source=source, **more)
    assert "the secret" not in str(caught.value)
    return caught.value


def test_what_engines_read_lies_in_the_cache_and_nothing_else(s3: S3, tmp_path: Path) -> None:
    assert content(fetch(s3, tmp_path)) == FILES


def test_a_second_fetch_asks_for_the_list_and_for_no_file(s3: S3, tmp_path: Path) -> None:
    first = fetch(s3, tmp_path)
    s3.asked.clear()
    assert fetch(s3, tmp_path) == first and {path for _, path, _ in s3.asked} == {"/models"}


def test_a_model_that_changed_in_the_bucket_gets_a_folder_of_its_own(s3: S3, tmp_path: Path) -> None:
    first = fetch(s3, tmp_path)
    s3.files["config.json"] = b'{"architectures": ["Another"]}'
    second = fetch(s3, tmp_path)
    assert first != second and content(first) == FILES
    assert (second / "config.json").read_bytes() == s3.files["config.json"]


def test_an_answer_that_ends_early_is_gone_on_from_where_it_ended(s3: S3, tmp_path: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    s3.faults.cut[name] = 1_000
    assert content(fetch(s3, tmp_path)) == FILES
    assert s3.bytes_sent(name) == ["bytes=0-", "bytes=1000-"]


def test_a_fetcher_that_died_is_gone_on_from(s3: S3, tmp_path: Path) -> None:
    name = "model-00002-of-00002.safetensors"
    s3.faults.cut[name] = 5_000
    with pytest.raises(SourceUnavailable):
        fetch(s3, tmp_path, retry=Retry(tries=1))
    s3.asked.clear()
    assert content(fetch(s3, tmp_path)) == FILES
    assert s3.bytes_sent(name) == ["bytes=5000-"]


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
def test_wrong_bytes_are_noticed_and_fetched_again(name: str, s3: S3, tmp_path: Path) -> None:
    s3.faults.spoil[name] = 1
    assert content(fetch(s3, tmp_path)) == FILES
    assert s3.bytes_sent(name) == ["bytes=0-", "bytes=0-"]


def test_bytes_that_stay_wrong_are_refused_by_the_objects_name(s3: S3, tmp_path: Path) -> None:
    s3.faults.spoil["tokenizer.json"] = 99
    error = refused(s3, tmp_path)
    assert error.code == "ModelCorrupt" and "team/chat/tokenizer.json" in error.reason
    assert not any(path.name == "tokenizer.json" for path in tmp_path.rglob("*"))


def test_an_etag_that_is_no_sum_leaves_the_size_and_says_so(s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    s3.encryption = "aws:kms"
    assert content(fetch(s3, tmp_path)) == FILES
    assert "its size alone was checked: its ETag is no MD5 (aws:kms)" in caplog.text


def test_a_server_that_is_busy_is_asked_again_and_not_for_ever(s3: S3, tmp_path: Path) -> None:
    s3.faults.refuse = 2
    assert content(fetch(s3, tmp_path)) == FILES
    s3.faults.refuse = 99
    assert refused(s3, tmp_path / "other").code == "ModelSourceUnreachable"
    assert s3.faults.refuse == 96


def test_a_model_that_was_fetched_is_served_when_the_server_is_away(
    s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fetch(s3, tmp_path)
    s3.faults.refuse = 99
    assert fetch(s3, tmp_path) == first and "serving the model as it was last fetched" in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "AKIDOTHER"}, "InvalidAccessKeyId"),
        ({"AWS_ACCESS_KEY_ID": ""}, "no credentials are given"),
    ],
)
def test_wrong_credentials_are_refused_at_once_with_what_s3_says(
    given: dict[str, str], said: str, s3: S3, tmp_path: Path
) -> None:
    error = refused(s3, tmp_path, **given)
    assert (error.code, len(s3.asked)) == ("ModelAccessDenied", 1) and said in error.reason


def test_a_bucket_of_another_region_is_refused_with_the_region_to_set(s3: S3, tmp_path: Path) -> None:
    s3.region = "eu-central-1"
    assert "the bucket is in eu-central-1: set AWS_REGION" in refused(s3, tmp_path).reason
    assert content(fetch(s3, tmp_path, AWS_REGION="eu-central-1")) == FILES


def test_a_public_bucket_needs_no_credentials(s3: S3, tmp_path: Path) -> None:
    s3.credentials = None
    assert content(fetch(s3, tmp_path, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")) == FILES


@pytest.mark.parametrize(
    ("source", "said"),
    [("s3://other/team/chat", "NoSuchBucket"), ("s3://models/team", "has no config.json under 'team/'"), ("s3://models", "'/'")],
)
def test_a_model_that_is_not_there_is_refused_by_name(source: str, said: str, s3: S3, tmp_path: Path) -> None:
    error = refused(s3, tmp_path, source=source)
    assert error.code == "ModelNotFound" and said in error.reason and source in str(error)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"http://127\.0\.0\.1:9 cannot be reached: ConnectionRefusedError"):
        resolve(SOURCE, tmp_path, environ={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, retry=QUICK)


def test_fetchers_of_one_cache_fetch_each_file_once(s3: S3, tmp_path: Path) -> None:
    said: list[Progress] = []
    found: list[Path] = []
    with s3.hold:
        threads = [threading.Thread(target=lambda: found.append(fetch(s3, tmp_path, said.append))) for _ in range(3)]
        for thread in threads:
            thread.start()
        while sum(one.waiting for one in list(said)) < 2:
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and content(found[0]) == FILES
    assert all(s3.bytes_sent(name) == ["bytes=0-"] for name in FILES)


def test_progress_goes_from_nothing_to_the_whole(s3: S3, tmp_path: Path) -> None:
    said: list[Progress] = []
    fetch(s3, tmp_path, said.append)
    total = sum(map(len, FILES.values()))
    assert {one.total_bytes for one in said} == {total}
    assert said[0].done_bytes == 0 and said[-1].done_bytes == total
    assert [one.done_bytes for one in said] == sorted(one.done_bytes for one in said)


def test_a_cache_that_may_not_be_written_is_named(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "s3").write_text("a file where a folder should be")
    error = refused(s3, tmp_path)
    assert error.code == "ModelCacheUnusable" and str(tmp_path) in error.reason
