"""smg 1.13.0 with 16 mock gRPC workers, pinned as `rig.py` pins ours.

Promise: every process started here ends with the context, whatever the body raises; traffic stays on loopback; where smg is
not installed, `missing` says so in words.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rig

VERSION = "1.13.0"
CACHE = Path(os.environ.get("PENSTOCK_CACHE", "~/.cache/penstock")).expanduser()
VENV = CACHE / "peers"
INSTALL = (
    f"{CACHE}/uv/bin/uv venv --python 3.11 {VENV} && {CACHE}/uv/bin/uv pip install --python {VENV} smg=={VERSION} smg-grpc-proto"
)
FLAGS = ("--backend", "vllm", "--policy", "cache_aware", "--log-level", "warn")
KV_EVERY_S = 0.02  # penstock_workers.pool.reports reports blocks at this interval
# Metric to keep, and the label that tells its series apart.
SERIES = {
    "smg_cache_aware_policy_branch_total": "branch", "smg_tokenizer_encode_path_loads_total": "path",
    "smg_tokenizer_cache_lookups_total": "result", "smg_router_tokens_total": "token_type",
    "smg_kv_event_batches_total": "disposition", "smg_kv_event_blocks_total": "op", "smg_kv_index_entries": "",
    "smg_kv_index_lookup_seconds_sum": "", "smg_kv_index_lookup_seconds_count": "", "smg_router_request_errors_total": "",
    "smg_worker_retries_total": "", "smg_kv_event_missed_batches_total": "",
}  # fmt: skip
_LINE = re.compile(r"^(\w+)(\{[^}]*\})? (\S+)$", re.MULTILINE)


def missing() -> str | None:
    """Why smg cannot be run here; None: it can."""
    python, program = VENV / "bin/python", VENV / "bin/smg"
    if not program.exists():
        return f"{program} does not exist; smg is no part of the locked environment. To install it: {INSTALL}"
    code = "import importlib.metadata as m, smg_grpc_proto, grpc; print(m.version('smg'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if done.returncode or done.stdout.strip() != VERSION:
        return f"{VENV} has no working smg {VERSION} with smg-grpc-proto: {(done.stdout + done.stderr).strip()[-300:]}"
    return None


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = entry.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo.extend(parents.get(found[-1], []))
    return found


def tree_cpu_s(pid: int) -> float:
    total = 0.0
    for one in tree(pid):
        with contextlib.suppress(FileNotFoundError):
            total += rig.cpu_s(one)
    return total


def clock_cpu_s(pid: int) -> float:
    """The same by the process's own clock, which keeps what ended threads used."""
    return sum(time.clock_gettime((~one << 3) | 2) for one in tree(pid))


@dataclass(frozen=True, slots=True)
class Smg:
    http: str
    metrics_address: str
    counters_address: tuple[str, int]
    pid: int
    folder: Path

    def metrics(self) -> dict[str, float]:
        """What `SERIES` names of smg's own metrics, summed over workers; a series' key is its name and the labels named there."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        totals: dict[str, float] = {}
        for name, labels, value in (m.groups() for m in _LINE.finditer(text)):
            if name in SERIES:
                found = re.search(rf'{SERIES[name]}="([^"]*)"', labels or "") if SERIES[name] else None
                key = f"{name}:{found[1]}" if found else name
                totals[key] = totals.get(key, 0.0) + float(value)
        return totals

    def counters(self) -> dict[str, int]:
        """What the workers counted."""
        with socket.create_connection(self.counters_address, timeout=5) as s, s.makefile() as f:
            return dict(json.loads(f.read()))

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*.log")))


def _spawn(folder: Path, name: str, args: list[str], core: int) -> subprocess.Popen[bytes]:
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("PYTHON")}
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(args, stdout=log, stderr=log, env=env, preexec_fn=lambda: os.sched_setaffinity(0, {core}))


def _listening(process: subprocess.Popen[bytes], port: int, folder: Path, timeout_s: float) -> None:
    """Workers open this port last. smg waits long before it asks again at a worker that was not there."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"the mock workers did not start in {timeout_s} s\n{(folder / 'workers.log').read_text()[-3000:]}")


def _wait(smg: Smg, process: subprocess.Popen[bytes], count: int, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError):
            with urllib.request.urlopen(f"http://{smg.http}/workers", timeout=2) as answer:
                workers = json.loads(answer.read())["workers"]
            if sum(bool(w.get("is_healthy", w.get("status") == "ready")) for w in workers) >= count:
                return
        time.sleep(0.1)
    raise TimeoutError(f"smg did not have {count} healthy workers after {timeout_s} s\n{smg.logs()}")


@contextlib.contextmanager
def service(
    count: int, token_ids: list[int], *, step_s: float, block_size: int = 32, kv_blocks: int = 8192, ready_s: float = 60.0
) -> Iterator[Smg]:
    """smg on the router core, its workers on the load core."""
    http, metrics, counters, *ports = rig.free_ports(3 + count)
    worker: dict[str, Any] = {
        "ports": ports, "counters_port": counters, "model_dir": str(rig.TINY), "token_ids": token_ids, "step_s": step_s,
        "block_size": block_size, "kv_blocks": kv_blocks, "kv_every_s": KV_EVERY_S,
    }  # fmt: skip
    router = [
        str(VENV / "bin/smg"), "launch", *FLAGS, "--model-path", str(rig.TINY), "--block-size", str(block_size),
        "--host", "127.0.0.1", "--port", str(http), "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics),
        "--worker-startup-check-interval", "1", "--worker-urls", *(f"grpc://127.0.0.1:{port}" for port in ports),
    ]  # fmt: skip
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="penstock-smg-") as tmp:
        try:
            script = str(Path(__file__).with_name("peer_smg_worker.py"))
            processes.append(_spawn(Path(tmp), "workers", [str(VENV / "bin/python"), script, json.dumps(worker)], rig.LOAD_CORE))
            _listening(processes[0], counters, Path(tmp), ready_s)
            processes.append(_spawn(Path(tmp), "smg", router, rig.ROUTER_CORE))
            smg = Smg(f"127.0.0.1:{http}", f"127.0.0.1:{metrics}", ("127.0.0.1", counters), processes[-1].pid, Path(tmp))
            _wait(smg, processes[-1], count, ready_s)
            yield smg
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
            for process in reversed(processes):
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
