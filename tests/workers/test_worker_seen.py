"""What a worker remembers of requests that their clients named."""

from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_proto.v1.common_pb2 import FinishReason, Sampling
from penstock_proto.v1.worker_pb2 import StartLeg
from penstock_workers.engine.protocol import EngineLeg, EngineOutput
from penstock_workers.pool.legs import Identity, LegTable
from penstock_workers.pool.seen import Seen
from penstock_workers.text import Tokens

IDS = array("I", range(20, 60)).tobytes()


def marks(data: bytes) -> list[int]:
    return array("Q", data).tolist()


def test_each_is_told_once_as_new_and_all_to_who_comes() -> None:
    seen = Seen()
    assert marks(seen.note([7, 8, 7], 0.0)) == [7, 8]
    assert marks(seen.note([8, 9], 1.0)) == [9]
    assert seen.note([7], 2.0) == b""
    assert marks(seen.all(3.0)) == [7, 8, 9]


def test_the_old_are_forgotten_and_so_are_those_beyond_the_limit() -> None:
    seen = Seen(limit=3, ttl_s=10.0)
    seen.note([1, 2], 0.0)
    seen.note([3, 4], 5.0)
    assert marks(seen.all(5.0)) == [2, 3, 4]
    assert marks(seen.all(10.0)) == [3, 4]
    assert marks(seen.note([1], 12.0)) == [1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(1, 30), max_size=8), st.floats(0.0, 4.0)), max_size=30))
def test_new_ones_add_up_to_all(history: list[tuple[list[int], float]]) -> None:
    seen, now, known = Seen(limit=10, ttl_s=10.0), 0.0, set[int]()
    for batch, later in history:
        now += later
        known |= set(marks(seen.note(batch, now)))
        assert set(marks(seen.all(now))) <= known
        assert len(seen) <= 10


@pytest.fixture
def table(worker_model_dir: Path) -> LegTable:
    return LegTable(Identity("w", 7, "compat"), Tokens.load(str(worker_model_dir)))


def start(table: LegTable, attach: int, leg_id: int, mark: int) -> int:
    leg = table.start(attach, StartLeg(leg_id=leg_id, token_ids=IDS, sampling=Sampling(max_tokens=9), request_mark=mark))
    assert isinstance(leg, EngineLeg)
    return leg.key


def test_a_request_has_begun_with_its_first_token_and_not_before(table: LegTable) -> None:
    attach = table.open("r")
    keys = [start(table, attach, leg_id, mark) for leg_id, mark in ((1, 77), (2, 0), (3, 88), (4, 99))]
    assert table.began == []
    table.translate([EngineOutput(keys[0], []), EngineOutput(keys[2], [], finish=FinishReason.ERROR)])
    assert table.began == []
    table.translate([EngineOutput(keys[0], [30]), EngineOutput(keys[1], [30])])
    table.translate([EngineOutput(keys[0], [31]), EngineOutput(keys[3], [30], finish=FinishReason.LENGTH)])
    assert table.began == [77, 99]
