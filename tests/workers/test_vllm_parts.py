"""The parts of the vLLM engine that need no vLLM."""

import hashlib
import json
from types import SimpleNamespace
from typing import Any

import cbor2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_proto.v1.common_pb2 import Choices, FinishReason, Sampling
from penstock_workers.connector import extras
from penstock_workers.connector.stats_rows import pulls
from penstock_workers.engine import vllm_args, vllm_kv, vllm_sampling
from penstock_workers.engine.protocol import ContextSource, EngineLeg
from penstock_workers.engine.vllm_args import EngineArgsError, VllmSettings
from penstock_workers.engine.vllm_events import ops_of
from penstock_workers.engine.vllm_legs import LegTable, RunningLeg

SETTINGS = VllmSettings(model_dir="/m", model_name="tiny", model_digest="ab")


def leg(length: int = 10, emitted: int = 0, bound: int = 0, **sampling: Any) -> EngineLeg:
    return EngineLeg(
        key=1, token_ids=range(length), emitted=emitted, sampling=Sampling(**sampling), max_leg_tokens=bound
    )  # fmt: skip


# --- arguments -------------------------------------------------------------------------------------------------


def test_arguments_of_the_caller_pass_in_either_spelling() -> None:
    settings = VllmSettings("/m", "tiny", "ab", engine_args={"max-model-len": 64, "block_size": 16})
    kwargs = vllm_args.engine_kwargs(settings, "ipc://e", "ipc://r")
    assert (kwargs["max_model_len"], kwargs["block_size"], kwargs["enforce_eager"]) == (64, 16, True)


@pytest.mark.parametrize("key", ["kv-transfer-config", "scheduling_policy", "model"])
def test_arguments_that_penstock_owns_are_refused_by_name(key: str) -> None:
    with pytest.raises(EngineArgsError, match=key.replace("-", "_")):
        vllm_args.engine_kwargs(VllmSettings("/m", "t", "ab", engine_args={key: 1}), "ipc://e", "ipc://r")


def test_a_gpu_engine_gets_no_defaults_of_the_cpu() -> None:
    kwargs = vllm_args.engine_kwargs(VllmSettings("/m", "t", "ab", device="gpu"), "ipc://e", "ipc://r")
    assert "enforce_eager" not in kwargs and "kv_cache_memory_bytes" not in kwargs
    assert kwargs["kv_transfer_config"]["kv_connector_extra_config"][extras.PROGRESS_DELAY_US] == 0


def test_a_local_engine_uses_the_loopback_alone() -> None:
    env = vllm_args.environment(SETTINGS, single_process=True)
    assert (env["UCX_NET_DEVICES"], env["VLLM_HOST_IP"]) == ("lo", "127.0.0.1")
    assert "UCX_NET_DEVICES" not in vllm_args.environment(VllmSettings("/m", "t", "ab", host="10.0.0.5"), True)


def test_the_hash_root_follows_pythonhashseed() -> None:
    assert vllm_args.hash_root({}) == hashlib.sha256(cbor2.dumps("vllm-none-hash", canonical=True)).digest()
    assert vllm_args.hash_root({"PYTHONHASHSEED": "7"}) == hashlib.sha256(cbor2.dumps("7", canonical=True)).digest()


# --- sampling --------------------------------------------------------------------------------------------------


def test_a_bounded_leg_is_held_and_keeps_min_tokens_within_its_bound() -> None:
    kwargs = vllm_sampling.sampling_kwargs(leg(11, 1, 2, max_tokens=30, min_tokens=20), 512, None)
    assert (kwargs["max_tokens"], kwargs["min_tokens"]) == (3, 3)
    assert kwargs["extra_args"][extras.KV]["do_remote_decode"] is True
    assert extras.answer_tokens(kwargs["extra_args"]) == 30
    assert extras.emitted(kwargs["extra_args"]) == 1


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(0, 50), st.integers(0, 60), st.integers(1, 600))
def test_a_leg_is_held_exactly_where_its_bound_comes_before_the_answer_s_end(
    prompt: int, emitted: int, bound: int, most: int
) -> None:
    limits = vllm_sampling.bounds(leg(prompt + emitted, emitted, bound, max_tokens=most), 512)
    whole = min(most, 512 - prompt)
    assert limits.holds == (0 < bound < whole - emitted)
    assert limits.max_tokens == (emitted + bound if limits.holds else whole)


def test_unset_fields_take_the_protocol_s_defaults() -> None:
    kwargs = vllm_sampling.sampling_kwargs(leg(), 512, None)
    assert (kwargs["temperature"], kwargs["top_p"], kwargs["repetition_penalty"], kwargs["seed"]) == (1.0, 1.0, 1.0, None)
    assert (kwargs["max_tokens"], kwargs["logprobs"]) == (502, None)
    assert vllm_sampling.sampling_kwargs(leg(temperature=0.0, seed=0), 512, None)["temperature"] == 0.0
    assert vllm_sampling.sampling_kwargs(leg(seed=0, logprobs=0), 512, None)["logprobs"] == 0


@pytest.mark.parametrize(
    ("sampling", "want"),
    [
        (Sampling(json_schema="{}"), {"json": "{}"}),
        (Sampling(choice=Choices(values=["a", "b"])), {"choice": ["a", "b"]}),
        (Sampling(json_object=True), {"json_object": True}),
        (Sampling(json_object=False), None),
        (Sampling(), None),
    ],
)
def test_structured_output_is_named_as_vllm_names_it(sampling: Sampling, want: dict[str, Any] | None) -> None:
    assert vllm_sampling.structured(sampling) == want


# --- KV --------------------------------------------------------------------------------------------------------

HELD = {
    "do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[3, 4, 5]], "remote_engine_id": "e",
    "remote_request_id": "p-1", "remote_host": "h", "remote_port": 1, "tp_size": 1, "remote_num_tokens": 70,
}  # fmt: skip


def test_kv_goes_to_the_leg_that_begins_with_its_tokens() -> None:
    wire = vllm_kv.to_wire(HELD, range(75))
    assert vllm_kv.from_wire(wire, range(71), 32) == HELD
    assert vllm_kv.holder_request(wire) == "p-1"


@pytest.mark.parametrize("ids", [range(69), [*range(69), 7, 8], [9, *range(1, 80)]])
def test_kv_of_other_tokens_is_refused(ids: Any) -> None:
    with pytest.raises(vllm_kv.TransferRefused):
        vllm_kv.from_wire(vllm_kv.to_wire(HELD, range(70)), ids, 32)


@pytest.mark.parametrize(
    "change",
    [
        {"remote_block_ids": [[3, 4]]},
        {"remote_block_ids": []},
        {"remote_num_tokens": 0},
        {"remote_num_tokens": "70"},
        {"remote_host": None},
        {"remote_num_tokens": 97},
    ],
)
def test_kv_whose_blocks_do_not_cover_its_tokens_is_refused(change: dict[str, Any]) -> None:
    wire = json.loads(vllm_kv.to_wire(HELD, range(70))) | change
    with pytest.raises(vllm_kv.TransferRefused):
        vllm_kv.from_wire(json.dumps(wire).encode(), range(100), 32)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"[]", b"{}", b"\xff", b'{"remote_request_id": 4}'])
def test_parameters_that_name_no_holder_are_none(data: bytes) -> None:
    assert vllm_kv.holder_request(data) is None


def test_pull_rows_are_read_from_vllm_s_statistics() -> None:
    assert pulls(None) == pulls({}) == pulls({"transfer_duration": [1]}) == []
    rows = {"penstock_pull_tokens": [70], "penstock_pull_seconds": [0.5], "penstock_pull_failed": [1]}
    assert pulls(rows) == [(70, 0.5, True)]


# --- events ----------------------------------------------------------------------------------------------------


def test_events_become_ops_in_order_and_neighbours_join() -> None:
    batch = [
        1.0,
        [
            {"type": "BlockStored", "block_hashes": [1, 2], "parent_block_hash": None, "token_ids": [], "block_size": 2},
            {"type": "BlockStored", "block_hashes": [2**64 - 1], "group_idx": 0},
            {"type": "BlockStored", "block_hashes": [9], "group_idx": 1},
            {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"},
            {"type": "AllBlocksCleared"},
        ],
        0,
    ]
    ops = [(op.kind, op.hashes.tolist()) for op in ops_of(msgspec.msgpack.encode(batch))]
    assert ops == [("stored", [1, 2, 2**64 - 1]), ("removed", [1]), ("cleared", [])]


# --- legs ------------------------------------------------------------------------------------------------------


def core(name: str = "r", ids: list[int] | None = None, finish: int | None = None, **more: Any) -> Any:
    fields = {"events": None, "new_logprobs": None, "prefill_stats": None, "kv_transfer_params": None, "stop_reason": None}
    return SimpleNamespace(request_id=name, new_token_ids=ids or [], finish_reason=finish, **(fields | more))


def stats(**details: int) -> Any:
    names = ("num_ctx_tokens", "num_generation_tokens", "num_generation_requests")
    found = SimpleNamespace(**{name: details.get(name, 0) for name in names}, elapsed_ms=2.0)
    return SimpleNamespace(
        iteration_details=found, num_running_reqs=1, num_waiting_reqs=0, num_skipped_waiting_reqs=0, kv_cache_usage=0.5
    )


def table(strays: list[Any] | None = None, **fields: Any) -> LegTable:
    made = LegTable(30.0, (strays if strays is not None else []).append)
    made.add(RunningLeg(leg(**fields), "r", fields.get("max_tokens", 5)))
    return made


def test_a_leg_s_life_is_counted() -> None:
    legs = table(length=10, max_tokens=5)
    assert legs.outputs([]) == []
    assert legs.step(stats(num_ctx_tokens=6)).waiting_tokens == 4
    prefill = SimpleNamespace(num_local_cached_tokens=2, num_external_cached_tokens=1, num_cached_tokens=3)
    (first,) = legs.outputs([core(ids=[7], prefill_stats=prefill)])
    assert first.context == ContextSource(2, 1, 7)
    step = legs.step(stats(num_ctx_tokens=1))
    assert (step.waiting_tokens, step.context_tokens, step.prefill_tokens) == (0, 0, 1)
    (last,) = legs.outputs([core(ids=[8], finish=1)])
    step = legs.step(stats(num_generation_tokens=1, num_generation_requests=1))
    assert (step.context_tokens, step.decodes, step.prefill_tokens) == (11, 1, 0)
    assert last.context is None and len(legs) == 0


def test_length_before_the_answer_s_end_is_a_leg_s_end() -> None:
    held = dict(HELD, remote_num_tokens=10)
    (output,) = table(length=10, max_tokens=5).outputs([core(ids=[7], finish=1, kv_transfer_params=held)])
    assert output.finish == FinishReason.LEG_END
    assert output.kv is not None and output.kv.num_tokens == 10
    (output,) = table(length=10, max_tokens=1).outputs([core(ids=[7], finish=1)])
    assert (output.finish, output.kv) == (FinishReason.LENGTH, None)


def test_a_stop_is_named_by_its_token() -> None:
    (output,) = table().outputs([core(ids=[7], finish=0, stop_reason=7)])
    assert (output.finish, output.stop_reason) == (FinishReason.STOP, "7")
    (output,) = table().outputs([core(ids=[7], finish=0)])
    assert output.stop_reason == ""


def test_kv_of_a_leg_that_is_gone_is_a_stray() -> None:
    strays: list[Any] = []
    legs = table(strays)
    running = legs.get(1)
    assert running is not None
    legs.remove(running)
    assert legs.outputs([core(ids=[7], finish=1, kv_transfer_params=HELD)]) == []
    assert strays == [HELD]


def test_an_engine_s_error_is_the_caller_s_only_where_a_grammar_failed_first() -> None:
    (output,) = table(regex="a+").outputs([core(finish=3)])
    assert (output.fault, output.fault_field) == ("caller", "regex")
    (output,) = table().outputs([core(finish=3)])
    assert output.fault == "worker"
