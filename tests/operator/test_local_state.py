"""The record of a run, its lock, and the addresses it listens on."""

import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_local_desire import RUN

from penstock_operator.local import state
from penstock_operator.local.ports import Listen, check, settle, split
from penstock_operator.local.state import LocalError


@pytest.fixture(autouse=True)
def _own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "root"))


def test_a_record_is_read_back_as_it_was_written_and_is_private() -> None:
    folder = state.open_folder("tiny")
    assert state.read(folder) is None and state.names() == []
    state.write(folder, RUN)
    assert state.read(folder) == RUN and state.names() == ["tiny"]
    assert (folder / "run.json").stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    state.forget(folder, RUN)
    assert state.read(folder) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": "x"}'])
def test_a_record_that_cannot_be_read_is_named_and_not_removed(text: str) -> None:
    folder = state.open_folder("tiny")
    (folder / "run.json").write_text(text)
    with pytest.raises(LocalError, match=r"run\.json: is not a run's record"):
        state.read(folder)
    assert (folder / "run.json").exists()


def test_only_a_folder_named_for_the_run_is_removed(tmp_path: Path) -> None:
    other = tmp_path / "precious"
    other.mkdir()
    state.remove_ray_folder(replace(RUN, ray_dir=str(other)))
    assert other.exists()


def test_one_process_holds_a_service_at_a_time() -> None:
    folder = state.open_folder("tiny")
    with state.lock(folder) as first, state.lock(folder) as second:
        assert first and not second
    with state.lock(folder) as again:
        assert again


def test_ray_sockets_fit_in_107_bytes() -> None:
    longest = state.ray_folder("f" * 32) / "r/session_2026-11-21_12-54-02_834123_4194304/sockets/plasma_store.socket"
    assert len(str(longest)) < 107


@pytest.mark.parametrize(
    "address", ["8000", ":8000", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", "0.0.0.0:1", "127.evil.com:1"]
)
def test_an_address_off_loopback_or_malformed_is_refused_by_its_flag(address: str) -> None:
    with pytest.raises(ValueError, match=r"^--http: "):
        split("http", address)


def test_port_0_becomes_a_free_port_and_a_taken_one_is_told() -> None:
    settled = settle(Listen("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"))
    assert len({settled.http, settled.grpc, settled.reports}) == 3 and not settled.http.endswith(":0")
    with socket.socket() as taken:
        # As gRPC servers do: a probe that shared the port would miss this one.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LocalError, match=f"--reports: {address} is in use"):
            settle(Listen("127.0.0.1:0", "127.0.0.1:0", address))


def test_one_port_for_two_listeners_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--grpc: port 8000 is --http's too"):
        check(Listen("127.0.0.1:8000", "127.0.0.1:8000", "127.0.0.1:0"))
    check(Listen("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"))
