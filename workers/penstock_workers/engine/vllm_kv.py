"""KV that one engine holds and another pulls: its parameters on the wire, and what may be pulled.

Promise: a pull of KV that covers other tokens than the leg's is refused before the engine sees it.
"""

import hashlib
import json
from array import array
from collections.abc import Sequence
from typing import Any

from penstock_workers.connector import extras

_PREFIX = "penstock_prefix"  # digest of the tokens covered


class TransferRefused(ValueError):
    """The KV cannot be pulled for this leg; computing is right."""


def prefix_digest(token_ids: Sequence[int]) -> str:
    return hashlib.sha256(array("I", token_ids).tobytes()).hexdigest()


def to_wire(params: dict[str, Any], token_ids: Sequence[int]) -> bytes:
    """What a holder gives away; `token_ids` is its whole context."""
    covered = token_ids[: params["remote_num_tokens"]]
    return json.dumps(params | {_PREFIX: prefix_digest(covered)}, separators=(",", ":")).encode()


def from_wire(data: bytes, token_ids: Sequence[int], block_size: int) -> dict[str, Any]:
    """vLLM's kv_transfer_params for a pull."""
    params = parse(data)
    digest = params.pop(_PREFIX, None)
    needed = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port", "tp_size")
    missing = [name for name in needed if params.get(name) is None]
    if missing:
        raise TransferRefused(f"the KV's parameters lack {', '.join(missing)}")
    wrong = extras.covers(params, len(token_ids), block_size)
    if wrong:
        raise TransferRefused(wrong)
    if digest != prefix_digest(token_ids[: params["remote_num_tokens"]]):
        raise TransferRefused("the KV covers other tokens than the leg's")
    return params | {"do_remote_prefill": True, "do_remote_decode": False}


def parse(data: bytes) -> dict[str, Any]:
    try:
        params = json.loads(data)
    except ValueError as error:
        raise TransferRefused("the KV's parameters are not JSON") from error
    if not isinstance(params, dict):
        raise TransferRefused("the KV's parameters are not a JSON object")
    return params


def holder_request(data: bytes) -> str | None:
    """The holder's request whose blocks are meant; None where the parameters name none."""
    try:
        name = parse(data).get("remote_request_id")
    except TransferRefused:
        return None
    return name if isinstance(name, str) else None
