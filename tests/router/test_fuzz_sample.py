"""A seeded sample of each fuzzer; the full runs are `python tests/router/fuzz_{wire,proto,http}.py --cases N --seed S`."""

import random

import fuzz_http
import fuzz_proto
import fuzz_wire
import pytest
from fuzz_core import Findings, mutated, scramble
from hypothesis import given
from hypothesis import strategies as st

from penstock_proto.v1.inference_pb2 import GenerateRequest
from penstock_router.faults import Fault
from penstock_router.request import Limits, deserialize, parse

SEED = 20261121


def sound(findings: Findings, cases: int, *outcomes: str) -> None:
    assert findings.faults == []
    assert findings.cases == cases
    assert set(outcomes) <= set(findings.outcomes)


@pytest.mark.slow
async def test_frames_neither_raise_nor_leak_nor_stall() -> None:
    sound(await fuzz_wire.run(2_000, SEED), 2_000, "client port: open", "client port: closed by us", "our client: closed by us")


@pytest.mark.slow
async def test_messages_neither_raise_nor_leak_and_every_request_has_its_status() -> None:
    found = await fuzz_proto.run(8_000, SEED)
    sound(found, 8_000, "request OK", "request INVALID_ARGUMENT", "report taken", "report INVALID_ARGUMENT", "command EngineLeg")


@pytest.mark.slow
async def test_http_is_never_a_caller_s_5xx_and_leaves_nothing_behind() -> None:
    sound(await fuzz_http.run(1_600, SEED), 1_600, "200", "400", "404", "405", "left")


@given(st.binary(max_size=300))
def test_any_octets_are_a_request_or_a_fault(data: bytes) -> None:
    try:
        request = parse(deserialize(data), Limits(models=frozenset({"tiny"})))
    except Fault as fault:
        assert fault.message and len(fault.message) < 1000
    else:
        assert request.n >= 1


@given(st.integers(0, 2**32))
def test_any_scrambled_request_is_a_request_or_a_fault(seed: int) -> None:
    rng = random.Random(seed)
    message = GenerateRequest(prompt="x")
    scramble(message, rng, 0.2)
    data = message.SerializeToString()
    try:
        request = parse(deserialize(mutated(data, rng) if seed & 1 else data), Limits(models=frozenset()))
    except Fault as fault:
        assert fault.message
    else:
        assert [request.prompt, request.messages, request.token_ids].count(None) == 2
