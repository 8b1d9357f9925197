"""What a pod does before it goes."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock_workers.pool import prestop


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def waited(counts: list[int], timeout_s: float) -> float:
    time = Time()
    left = iter(counts)
    prestop.wait_for_workers(lambda: next(left, counts[-1]), timeout_s, time, time.sleep)
    return time.now


def test_a_head_waits_for_the_workers_that_are_going_and_no_longer() -> None:
    assert waited([2, 2, 1, 1, 1, 0], 100) == 5.0


def test_a_head_whose_workers_stay_goes_once_the_deletion_would_have_shown() -> None:
    assert waited([0], 100) == 3.0


def test_a_head_goes_when_its_time_is_over() -> None:
    assert waited([1], 10) == 10.0


def test_only_pods_that_are_being_deleted_and_still_run_are_waited_for() -> None:
    pods = [
        {"metadata": {}},
        {"metadata": {"deletionTimestamp": "t"}, "status": {"phase": "Running"}},
        {"metadata": {"deletionTimestamp": "t"}, "status": {"phase": "Failed"}},
    ]
    assert prestop.count_going(pods) == 1


def test_a_pod_without_a_worker_goes_at_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prestop, "WORKER_PORT", 1)
    assert prestop.main(["worker", "--timeout", "2"]) == 0
    assert "no drain: UNAVAILABLE" in capsys.readouterr().err


def test_a_head_that_reaches_no_api_server_goes_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert prestop.main(["head", "--timeout", "2"]) == 0
    assert "not waited" in capsys.readouterr().err


@pytest.fixture
def api_server() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    asked: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            body = json.dumps({"items": [{"metadata": {"name": "w"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_workers_are_listed_by_the_head_s_own_account(api_server: tuple[str, list[tuple[str, str]]], tmp_path: Path) -> None:
    server, asked = api_server
    (tmp_path / "namespace").write_text("prod")
    (tmp_path / "token").write_text("secret\n")
    assert prestop.list_workers(server, "chat-1", tmp_path) == [{"metadata": {"name": "w"}}]
    ((path, authorization),) = asked
    assert path.startswith("/api/v1/namespaces/prod/pods?labelSelector=ray.io/cluster%3Dchat-1")
    assert authorization == "Bearer secret"


@pytest.fixture
def dying_cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, tuple[int, object]]]]:
    """One server for the API server's and the dashboard's pages: path prefix -> (status, body)."""
    pages: dict[str, tuple[int, object]] = {}
    (tmp_path / "namespace").write_text("prod")
    (tmp_path / "token").write_text("secret")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = next(page for prefix, page in pages.items() if self.path.startswith(prefix))
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", pages
        server.shutdown()
        thread.join()


def ray_nodes(*states: str) -> tuple[int, object]:
    workers = [{"state": state, "is_head_node": False} for state in states]
    return 200, {"data": {"result": {"result": [{"state": "ALIVE", "is_head_node": True}, *workers]}}}


def test_a_head_whose_account_is_gone_waits_for_every_worker_that_ray_still_has(
    dying_cluster: tuple[str, dict[str, tuple[int, object]]], tmp_path: Path
) -> None:
    url, pages = dying_cluster
    pages["/api/v1/namespaces"] = (401, {})
    pages["/api/v0/nodes"] = ray_nodes("ALIVE", "DEAD", "ALIVE")
    assert prestop.going_workers(url, "chat-1", tmp_path, url) == 2


def test_a_head_that_is_lost_alone_waits_for_no_worker(
    dying_cluster: tuple[str, dict[str, tuple[int, object]]], tmp_path: Path
) -> None:
    url, pages = dying_cluster
    pages["/api/v1/namespaces"] = (200, {"items": [{"metadata": {"name": "w"}}]})
    pages["/api/v0/nodes"] = ray_nodes("ALIVE")
    assert prestop.going_workers(url, "chat-1", tmp_path, url) == 0
