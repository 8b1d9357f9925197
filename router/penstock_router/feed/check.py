"""Whether a worker's report can be applied.

Promise: a report that passes here changes the fleet's view and raises nothing; what is wrong is said with the field's name.
"""

from typing import Final

from penstock_proto.v1.fleet_pb2 import CostReport, Hello, WorkerReport

COSTS: Final = ("base_s", "prefill_s", "decode_s", "context_s", "transfer_base_s", "transfer_token_s")
MAX_COST_S: Final = 1e6
MAX_NAME_CHARS: Final = 256


def hello_fault(hello: Hello, model: str) -> str:
    """What is wrong with a hello; empty: nothing. `model`: what this router serves, empty for anything."""
    if not hello.worker_id or len(hello.worker_id) > MAX_NAME_CHARS:
        return f"hello.worker_id: must have 1 to {MAX_NAME_CHARS} characters"
    for name in ("pool", "role", "model", "model_digest", "kv_compat", "shape"):
        if len(getattr(hello, name)) > MAX_NAME_CHARS or not getattr(hello, name).isprintable():
            return f"hello.{name}: must have at most {MAX_NAME_CHARS} characters, all printable"
    host, _, port = hello.address.rpartition(":")
    if not host or len(host) > MAX_NAME_CHARS or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 65536:
        return f"hello.address: {hello.address[:MAX_NAME_CHARS]!r} is not host:port"
    if not hello.capacity.block_size or not hello.capacity.max_model_len or not hello.capacity.vocab_size:
        return "hello.capacity: block_size, max_model_len and vocab_size must be above 0"
    if hello.hash.algorithm != "sha256_cbor" or len(hello.hash.root) != 32:
        return "hello.hash: must be sha256_cbor with a root of 32 bytes"
    if not hello.model_digest:
        return "hello.model_digest: must not be empty"
    if model and hello.model != model:
        return f"hello.model: this router serves {model!r}, not {hello.model!r}"
    return ""


def changed_fact(before: Hello, now: Hello) -> str:
    """What an incarnation says otherwise than before, though it cannot change; empty: nothing."""
    for name in ("model", "model_digest", "kv_compat", "shape", "capacity", "hash"):
        if getattr(before, name) != getattr(now, name):
            return f"hello.{name}: differs from what this incarnation said before"
    return ""


def report_fault(kind: str | None, report: WorkerReport) -> str:
    """What is wrong with a report other than hello; empty: nothing."""
    if kind == "load":
        return "" if 0.0 <= report.load.kv_usage <= 1.001 else f"load.kv_usage: must be 0 to 1, not {report.load.kv_usage:g}"
    if kind == "delta":
        return next((_octets("delta.ops.hashes", op.hashes) for op in report.delta.ops if len(op.hashes) & 7), "")
    if kind == "snapshot":
        return _octets("snapshot.hashes", report.snapshot.hashes)
    if kind == "seen":
        return _octets("seen.hashes", report.seen.hashes)
    if kind == "cost":
        return _cost(report.cost)
    return "report: names no report" if kind is None else ""


def _octets(name: str, data: bytes) -> str:
    return f"{name}: {len(data)} bytes are no 64-bit hashes" if len(data) & 7 else ""


def _cost(cost: CostReport) -> str:
    for name in COSTS:
        value = getattr(cost, name)
        if not 0.0 <= value <= MAX_COST_S:
            return f"cost.{name}: must be 0 to {MAX_COST_S:g} s, not {value:g}"
    return ""
