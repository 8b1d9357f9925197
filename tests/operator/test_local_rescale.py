"""Which change of a running local service is applied, and which is refused by name."""

from pathlib import Path

import pytest

from penstock_operator.api import LLMService, default_text, load
from penstock_operator.local import ask, rescale, state
from penstock_operator.local.progress import Joined
from penstock_operator.local.state import LocalError


def service(prefill: int = 1, decode: int = 1, **more: str) -> LLMService:
    text = default_text().replace("prefill: {replicas: 1}", f"prefill: {{replicas: {prefill}}}")
    text = text.replace("decode: {replicas: 1}", f"decode: {{replicas: {decode}}}")
    for old, new in more.items():
        text = text.replace(old, new)
    return load(text)


def test_replicas_alone_may_differ() -> None:
    assert rescale.only_replicas_differ(service(), service(2, 3))
    assert rescale.replicas(service(2, 3)) == {"prefill": 2, "decode": 3}
    assert not rescale.only_replicas_differ(service(), service(2, 3, interactive="fast"))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rescale.write(tmp_path, rescale.WANTED, service(2, 3))
    assert rescale.read(tmp_path, rescale.WANTED) == service(2, 3)
    (tmp_path / rescale.WANTED).write_text("{")
    with pytest.raises(LocalError, match=rescale.WANTED):
        rescale.read(tmp_path, rescale.WANTED)


def test_the_same_replicas_or_anything_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with pytest.raises(LocalError, match="running already"):
        rescale.rescale(service(), tmp_path, said.append)
    rescale.write(tmp_path, rescale.RUNNING, service())
    run = state.Run("tiny", "r" * 32, "boot", 1, 2, "h:1", "g:2", "r:3", "/tmp/x", 0.0, 1.0, "ready")
    monkeypatch.setattr(state, "read", lambda folder: run)
    with pytest.raises(LocalError, match="running already: http=h:1"):
        rescale.rescale(service(), tmp_path, said.append)
    with pytest.raises(LocalError, match="only topology"):
        rescale.rescale(service(2, 2, interactive="fast"), tmp_path, said.append)
    with pytest.raises(LocalError, match="supervisor is gone"):
        rescale.rescale(service(2, 2), tmp_path, said.append)
    assert said == []


def test_too_few_and_too_many_ready_workers_are_counted() -> None:
    found = [Joined("a", "prefill", "ready"), Joined("b", "prefill", "draining"), Joined("c", "decode", "ready")]
    assert ask.differing({"prefill": 2, "decode": 1}, found) == {"prefill": 1}
    assert ask.differing({"prefill": 1, "decode": 0}, found) == {"decode": -1}
