"""The container that fetches a model says how far it is, and why it failed, where the operator reads it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_standins import FILES, S3, Hub, served

from penstock_workers.model.__main__ import main
from penstock_workers.model.retry import Retry

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    world = Hub(token="hf_right")
    with served(world):
        monkeypatch.setenv("HF_ENDPOINT", world.url)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield world


class Ran:
    def __init__(self, cache: Path, *words: str) -> None:
        self.file = cache / "termination-log"
        self.code = main([*words, "--cache", str(cache), "--termination", str(self.file)])

    @property
    def said(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.file.read_text())["penstock_model"]
        return found


def test_progress_is_a_line_at_a_time_and_the_last_names_the_folder(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = Ran(tmp_path, "hf://org/chat")
    lines = [json.loads(line)["penstock_model"] for line in capsys.readouterr().out.splitlines()]
    assert ran.code == 0 and not ran.file.exists()
    total = sum(map(len, FILES.values()))
    assert lines[0] == {"done_bytes": 0, "total_bytes": total, "waiting": False}
    assert Path(lines[-1]["ready"], "config.json").is_file()


def test_a_wrong_token_is_told_with_the_secret_and_its_key(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    ran = Ran(tmp_path, "hf://org/chat", "--secret", "hf-token")
    assert (ran.code, ran.said["reason"]) == (2, "ModelAccessDenied")
    assert "Secret hf-token, key token" in ran.said["message"] and "hf_wrong" not in ran.file.read_text()


def test_a_missing_token_is_told_with_the_field(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    ran = Ran(tmp_path, "hf://org/chat")
    assert "name a Secret with key token in spec.model.secretRef" in ran.said["message"]


def test_a_missing_model_is_told_by_its_name(hub: Hub, tmp_path: Path) -> None:
    ran = Ran(tmp_path, "hf://org/another", "--secret", "hf-token")
    assert (ran.code, ran.said["reason"]) == (2, "ModelNotFound") and "hf://org/another" in ran.said["message"]


def test_wrong_keys_of_a_bucket_are_told_with_the_secret_and_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = S3()
    with served(world):
        for name, value in world.environ(AWS_SECRET_ACCESS_KEY="wrong").items():
            monkeypatch.setenv(name, value)
        ran = Ran(tmp_path, "s3://models/team/chat", "--secret", "bucket")
    assert (ran.code, ran.said["reason"]) == (2, "ModelAccessDenied")
    assert "Secret bucket, keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in ran.said["message"]


def test_what_may_pass_ends_the_container_so_that_it_is_started_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock_workers.model.source.Retry", lambda: Retry(tries=1))
    hub.faults.refuse = 9
    ran = Ran(tmp_path, "hf://org/chat")
    assert (ran.code, ran.said["reason"]) == (1, "ModelSourceUnreachable")
