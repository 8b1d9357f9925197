"""The leg table by itself: what is kept, and for how long."""

from array import array
from pathlib import Path

import pytest

from penstock_proto.v1.common_pb2 import FinishReason, Sampling
from penstock_proto.v1.worker_pb2 import LegOutput, StartLeg
from penstock_workers.engine.protocol import EngineLeg, EngineOutput, HeldKv
from penstock_workers.pool import legs
from penstock_workers.pool.legs import Identity, LegTable
from penstock_workers.text import Tokens

IDS = array("I", range(20, 60)).tobytes()


@pytest.fixture
def table(worker_model_dir: Path) -> LegTable:
    return LegTable(Identity("w", 7, "compat"), Tokens.load(str(worker_model_dir)))


def start(table: LegTable, attach: int, leg_id: int) -> int:
    leg = table.start(attach, StartLeg(leg_id=leg_id, token_ids=IDS, sampling=Sampling(max_tokens=9)))
    assert isinstance(leg, EngineLeg)
    return leg.key


def end(table: LegTable, key: int, finish: FinishReason = FinishReason.LENGTH, kv: HeldKv | None = None) -> list[LegOutput]:
    translated = table.translate([EngineOutput(key, [30], finish=finish, kv=kv)])
    return [m for messages in translated.outputs.values() for m in messages]


def test_a_leg_that_runs_twice_under_one_id_is_refused(table: LegTable) -> None:
    attach = table.open("r")
    start(table, attach, 5)
    again = table.start(attach, StartLeg(leg_id=5, token_ids=IDS))
    assert isinstance(again, LegOutput)
    assert again.error.field == "leg_id"


def test_outputs_of_ended_aborted_and_detached_legs_are_dropped(table: LegTable) -> None:
    attach = table.open("r")
    ended, aborted, left = (start(table, attach, i) for i in range(3))
    assert end(table, ended)
    assert table.abort(attach, 1) == (aborted, None)
    assert table.close(attach) == [left]
    assert not any(end(table, key) for key in (ended, aborted, left, 999))
    assert len(table) == 0
    assert table.close(attach) == []


def test_an_abort_that_crosses_a_leg_s_end_frees_its_kv_once(table: LegTable) -> None:
    attach = table.open("r")
    key = start(table, attach, 1)
    (message,) = end(table, key, FinishReason.LEG_END, HeldKv(b"params", 40, 30.0))
    assert (message.kv.worker_id, message.kv.incarnation, message.kv.num_tokens) == ("w", 7, 40)
    assert (message.kv.lease_ms, message.kv.params) == (30_000, b"params")
    assert table.abort(attach, 1) == (None, b"params")
    assert table.abort(attach, 1) == (None, None)


def test_figures_include_a_leg_once_the_engine_has_spoken_of_it_or_stepped_twice(table: LegTable) -> None:
    attach = table.open("r")
    first = start(table, attach, 1)
    start(table, attach, 2)
    assert table.covered("r") == 0
    table.translate([EngineOutput(first, [30])])
    assert table.covered("r") == 1
    table.step()
    assert table.covered("r") == 1
    start(table, attach, 3)
    table.step()
    assert table.covered("r") == 2
    table.abort(attach, 3)
    assert table.covered("r") == 3, "a leg that is gone is in no figure"
    assert table.covered("another") == 0


def test_a_router_that_never_asks_for_load_costs_no_memory(table: LegTable) -> None:
    attach = table.open("r")
    for i in range(3 * legs._HELD_KEPT):
        end(table, start(table, attach, i), FinishReason.LEG_END, HeldKv(b"p", 40, 30.0))
    stream = table._attaches[attach]
    assert len(stream.uncovered) <= legs._HELD_KEPT + 1
    assert len(stream.held) <= legs._HELD_KEPT


def test_a_dead_engine_s_legs_fail_on_every_stream(table: LegTable) -> None:
    streams = [table.open(r) for r in "ab"]
    for attach in streams:
        start(table, attach, 1)
    failed = table.fail_all("worker", "gone").outputs
    assert sorted(failed) == streams
    assert all(m.finish_reason == FinishReason.ERROR and m.error.message == "gone" for ms in failed.values() for m in ms)
    assert len(table) == 0
