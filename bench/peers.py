"""Peers' figures, measured with the method of the project's reference (core pinned, CPU by schedstat, tiny Llama tokenizer).

Measured on a faster core than most of ours (Zen 5 against Zen 3): a peer run beside ours on one machine is the only exact
comparison; these stand beside our figures for orientation.
"""

TOKENS = (50, 500, 4_000, 16_000)
# CPU seconds per 1,000 requests by prompt tokens.
ROUTER_CPU_S_PER_1000 = {
    "smg 1.13.0, exact KV events": (0.230, 0.461, 1.954, 7.268),
    "smg 1.13.0, approximate cache": (0.152, 0.431, 1.890, 7.000),
    "Dynamo 1.6.1, KV mode": (0.428, 0.698, 3.180, 16.423),
    "vllm-router 0.1.17, ids given": (0.047, 0.081, 0.354, 1.184),
    "LiteLLM 1.109.1": (7.862, 8.159, 7.351, 6.690),
}
# CPU seconds per million streamed chunks.
STREAM_CPU_S_PER_MILLION = {
    "smg, exact KV events": 26.0,
    "smg, approximate cache": 15.5,
    "Dynamo, KV mode": 23.8,
    "vllm-router, ids given": 14.6,
}
# Microseconds, 1,000 blocks over 16 workers.
LONGEST_MATCH_US = {"Dynamo RadixTree": 30.9}
# Milliseconds to encode a prompt of so many tokens with the tokenizers library on the reference's core, median of 9: what
# says how much slower the core of this run is.
REFERENCE_ENCODE_MS = {508: 0.24, 4_017: 2.15, 16_079: 8.7}
