"""Sources become directories or are refused by name."""

import pickle
from pathlib import Path

import pytest

from penstock_workers.model.refused import SourceRefused, SourceUnavailable
from penstock_workers.model.source import resolve
from penstock_workers.tiny import MODEL_DIR


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
        ("pvc://claim/model", "pvc:// is Kubernetes'"),
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
    error = pickle.loads(pickle.dumps(SourceUnavailable("hf://a/b", "gone", "ModelCorrupt")))
    assert (type(error), error.source, error.reason, error.code) == (SourceUnavailable, "hf://a/b", "gone", "ModelCorrupt")
    assert str(error) == "spec.model.source: 'hf://a/b': gone"
