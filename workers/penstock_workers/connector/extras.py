"""What an engine tells its connector about one request, beside vLLM's own kv_transfer_params.

Promise: the names of `SamplingParams.extra_args` stand here and nowhere else, and importing this needs no vLLM.
"""

from collections.abc import Mapping
from typing import Any

CONNECTOR_MODULE = "penstock_workers.connector.connector"
CONNECTOR_CLASS = "PenstockConnector"

KV = "kv_transfer_params"  # vLLM's name
EMITTED = "penstock_emitted"  # how many of the last prompt ids are output of earlier legs
ANSWER_TOKENS = "penstock_answer_tokens"  # max_tokens of the whole answer; the request's own may be a leg's bound
EMITTED_IDS = "penstock_emitted_ids"  # scheduler to worker: those ids

PROGRESS_DELAY_US = "penstock_progress_delay_us"  # of kv_connector_extra_config; 0: NIXL's thread never sleeps


def emitted(extra: Mapping[str, Any] | None) -> int:
    return int((extra or {}).get(EMITTED, 0))


def answer_tokens(extra: Mapping[str, Any] | None) -> int | None:
    value = (extra or {}).get(ANSWER_TOKENS)
    return None if value is None else int(value)


def covers(params: Mapping[str, Any], num_tokens: int, block_size: int) -> str:
    """Why the KV that `params` describes cannot be pulled for a context of `num_tokens`; empty where it can.

    The puller aligns its blocks with the holder's at their ends, so a list that does not cover exactly
    `remote_num_tokens` would put blocks in wrong places without an error.
    """
    covered, blocks = params.get("remote_num_tokens"), params.get("remote_block_ids")
    if not isinstance(covered, int) or covered <= 0 or not blocks:
        return "the KV's parameters name no tokens or no blocks"
    if covered > num_tokens:
        return f"the KV covers {covered} tokens and the leg has {num_tokens}"
    want = -(-covered // block_size)
    if any(len(group) != want for group in blocks):
        return f"the KV covers {covered} tokens but lists {[len(group) for group in blocks]} blocks instead of {want}"
    return ""
