"""Sources become directories or are refused by name; a digest depends on what is read and on nothing else."""

import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import pytest

from penstock_workers.engine import source as subject
from penstock_workers.engine.source import SourceRefused, SourceUnavailable, model_digest, resolve
from penstock_workers.tiny import MODEL_DIR


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "chat_template.jinja"):
        (folder / name).write_text(f"the content of {name}")
    return folder


def refusal(source: str, cache_dir: Path) -> SourceRefused:
    with pytest.raises(SourceRefused) as caught:
        resolve(source, cache_dir)
    assert str(caught.value).startswith("spec.model.source: ") and repr(source) in str(caught.value)
    return caught.value


def test_the_built_in_model_is_found(tmp_path: Path) -> None:
    assert resolve("penstock://tiny", tmp_path) == MODEL_DIR


def test_a_directory_is_found_by_its_absolute_path(model: Path, tmp_path: Path) -> None:
    assert resolve(f"file://{model}", tmp_path) == model


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "accepted are penstock://tiny"),
        ("Qwen/Qwen3-8B", "accepted are penstock://tiny"),
        ("hf://", "accepted are penstock://tiny"),
        ("penstock://huge", "the one built-in model is penstock://tiny"),
        ("s3://bucket/model", "s3:// is not supported yet"),
        ("pvc://claim/model", "pvc:// is not supported yet"),
        ("ftp://host/model", "unknown scheme 'ftp'"),
        ("file://models/here", "the path must be absolute"),
        ("file:///no/such/folder", "/no/such/folder does not exist"),
        (f"file://{__file__}", "is not a directory"),
        (f"file://{Path(__file__).parent}", "has no config.json"),
        ("hf://Qwen3-8B", "must be hf://ORG/NAME"),
        ("hf://Qwen/Qwen3-8B/more", "must be hf://ORG/NAME"),
        ("hf://Qwen/Qwen3-8B@", "must be hf://ORG/NAME"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_by_name(source: str, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(source, tmp_path).reason


def test_a_refusal_crosses_processes(tmp_path: Path) -> None:
    error = pickle.loads(pickle.dumps(SourceUnavailable("hf://a/b", "gone")))
    assert (type(error), error.source, error.reason) == (SourceUnavailable, "hf://a/b", "gone")
    assert str(error) == "spec.model.source: 'hf://a/b': gone"


class Hub:
    """Stands in for huggingface_hub."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Path | None = None, error: str = "") -> None:
        self.calls: list[tuple[str, dict[str, object]]] = []
        kinds = {
            name: type(name, (ValueError if name == "HFValidationError" else OSError,), {})
            for name in (
                "GatedRepoError",
                "HfHubHTTPError",
                "HFValidationError",
                "LocalEntryNotFoundError",
                "RepositoryNotFoundError",
                "RevisionNotFoundError",
            )
        }

        def snapshot_download(repository: str, **options: object) -> str:
            self.calls.append((repository, options))
            if error:
                raise kinds[error]("said by the hub")
            return str(answer)

        hub, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
        vars(hub).update(snapshot_download=snapshot_download, errors=errors)
        vars(errors).update(kinds)
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)


def test_a_hub_model_is_fetched_at_its_revision_with_the_token_of_the_environment(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, model)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert resolve("hf://Qwen/Qwen3-8B@v1.0", tmp_path / "cache") == model
    [(repository, options)] = hub.calls
    assert repository == "Qwen/Qwen3-8B" and options["revision"] == "v1.0" and options["token"] == "secret"
    assert options["cache_dir"] == tmp_path / "cache/hub" and "*.safetensors" in options["allow_patterns"]  # type: ignore[operator]


def test_a_hub_model_without_a_revision_asks_for_the_default_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, model)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    resolve("hf://Qwen/Qwen3-8B", tmp_path)
    assert hub.calls[0][1]["revision"] is None and hub.calls[0][1]["token"] is None


@pytest.mark.parametrize(
    ("error", "reason", "again"),
    [
        ("GatedRepoError", "HF_TOKEN", False),
        ("RepositoryNotFoundError", "no such model", False),
        ("RevisionNotFoundError", "no revision 'v9'", False),
        ("HFValidationError", "said by the hub", False),
        ("HfHubHTTPError", "cannot be reached", True),
        ("LocalEntryNotFoundError", "cannot be reached", True),
    ],
)
def test_what_the_hub_says_becomes_a_typed_refusal(
    error: str, reason: str, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub(monkeypatch, error=error)
    refused = refusal("hf://org/name@v9", tmp_path)
    assert reason in refused.reason and isinstance(refused, SourceUnavailable) is again


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
        monkeypatch.setattr("penstock_workers.engine.source.time.time", lambda: self.now_s)


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
