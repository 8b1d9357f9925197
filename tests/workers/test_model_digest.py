"""A digest depends on what is read and on nothing else; large files are read once."""

import os
import shutil
from pathlib import Path

import pytest

from penstock_workers.model import digest as subject
from penstock_workers.model.digest import model_digest


def test_a_digest_is_the_same_wherever_the_files_lie(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    other.mkdir()
    for file in sorted(model.iterdir(), reverse=True):
        shutil.copy(file, other)
    assert model_digest(model) == model_digest(other)
    assert len(model_digest(model)) == 64


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "chat_template.jinja"])
def test_a_digest_changes_with_every_file_that_is_read(name: str, model: Path) -> None:
    before = model_digest(model)
    (model / name).write_text("something else")
    changed = model_digest(model)
    (model / name).unlink()
    assert len({before, changed, model_digest(model)}) == 3


def test_a_digest_ignores_what_no_engine_reads(model: Path) -> None:
    before = model_digest(model)
    (model / "README.md").write_text("words")
    (model / ".gitattributes").write_text("words")
    assert model_digest(model) == before


def test_two_files_that_swap_their_contents_change_the_digest(model: Path) -> None:
    before = model_digest(model)
    one, two = (model / name for name in ("config.json", "tokenizer.json"))
    (one_text, two_text) = (one.read_text(), two.read_text())
    one.write_text(two_text)
    two.write_text(one_text)
    assert model_digest(model) != before


class Weights:
    """A large file, and how often its content is read."""

    def __init__(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = model / "model-00001-of-00002.safetensors"
        self.read = 0
        self.now_s = self.file.stat().st_ctime + 60
        content_digest = subject._content_digest

        def counted(file: Path) -> str:
            self.read += file == self.file
            return content_digest(file)

        monkeypatch.setattr(subject, "_REMEMBER_FROM_BYTES", self.file.stat().st_size)
        monkeypatch.setattr(subject, "_content_digest", counted)
        monkeypatch.setattr("penstock_workers.model.digest.time.time", lambda: self.now_s)


def test_large_weights_are_read_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights(model, monkeypatch)
    first = model_digest(model, tmp_path)
    assert model_digest(model, tmp_path) == first == model_digest(model) and weights.read == 2


def test_large_weights_that_changed_are_read_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights(model, monkeypatch)
    first, stat = model_digest(model, tmp_path), weights.file.stat()
    weights.file.write_text(weights.file.read_text().swapcase())
    os.utime(weights.file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert model_digest(model, tmp_path) == model_digest(model) != first


def test_weights_written_just_now_are_not_remembered(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights(model, monkeypatch)
    weights.now_s -= 59
    model_digest(model, tmp_path)
    model_digest(model, tmp_path)
    assert weights.read == 2


@pytest.mark.parametrize("damage", ["", "[1, 2", "{}", "[1]"])
def test_a_damaged_memory_is_read_as_none(damage: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights(model, monkeypatch)
    first = model_digest(model, tmp_path)
    for sidecar in (tmp_path / "digests").iterdir():
        sidecar.write_text(damage)
    assert model_digest(model, tmp_path) == first and weights.read == 2
