"""The right answers: one plain vLLM engine, no router, no connector, no prefix cache.

Reads a JSON list of {"token_ids", "sampling"} on stdin, writes a JSON list of {"text", "token_ids", "finish_reason"} to the
file named. The mapping to vLLM's parameters is written here anew, so that an error in the worker's mapping shows.
"""

import json
import os
import sys
from typing import Any

RENAMED = {"json_schema": "json", "regex": "regex", "choice": "choice", "grammar": "grammar"}


def answers(model_dir: str, dtype: str, requests: list[dict[str, Any]], block_size: int = 32) -> list[dict[str, Any]]:
    """One request at a time, so that no batch changes the arithmetic."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    llm = LLM(
        model=model_dir, dtype=dtype, enforce_eager=True, kv_cache_memory_bytes=256 << 20, block_size=block_size,
        enable_prefix_caching=False, max_num_seqs=4, disable_log_stats=True,
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
    )  # fmt: skip
    out = []
    for request in requests:
        sampling = dict(request["sampling"])
        structured = {RENAMED[k]: sampling.pop(k) for k in RENAMED if k in sampling}
        if structured:
            sampling["structured_outputs"] = StructuredOutputsParams(**structured)
        answer = llm.generate(
            {"prompt_token_ids": request["token_ids"]}, SamplingParams(**sampling), use_tqdm=False
        )[0].outputs[0]  # fmt: skip
        out.append({"text": answer.text, "token_ids": list(answer.token_ids), "finish_reason": answer.finish_reason})
    return out


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model_dir, dtype, target = sys.argv[1:4]
    result = answers(model_dir, dtype, json.load(sys.stdin))
    with open(target, "w") as f:
        json.dump(result, f)


if __name__ == "__main__":
    main()
