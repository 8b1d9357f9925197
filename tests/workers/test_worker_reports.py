"""Fleet.Join from the worker's side, against a small router."""

import asyncio
import contextlib
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from attach_client import attached, eventually, fake_worker, greedy
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_proto.v1 import fleet_pb2_grpc
from penstock_proto.v1.fleet_pb2 import KvOp as KvOpMessage
from penstock_proto.v1.fleet_pb2 import Resend, RoleAssignment, RouterNotice, Welcome, WorkerReport
from penstock_workers.engine.fake import FakeEngine
from penstock_workers.engine.protocol import KvOp
from penstock_workers.pool.kv_feed import CHUNK_HASHES, KvFeed
from penstock_workers.pool.reports import _BACKLOG_BYTES, Link, Reports
from penstock_workers.pool.worker import Worker


class View:
    """What a router makes of one Join stream; a gap or a delta before its snapshot is an error."""

    def __init__(self) -> None:
        self.reports: list[WorkerReport] = []
        self.keys: set[int] = set()
        self.next_seq = 0
        self.snapshots = 0
        self._chunks: list[array[int]] = []

    def take(self, report: WorkerReport) -> None:
        self.reports.append(report)
        kind = report.WhichOneof("report")
        if len(self.reports) == 1:
            assert kind == "hello"
        if kind == "snapshot":
            part = report.snapshot
            assert part.chunk == len(self._chunks)
            self._chunks.append(array("Q", part.hashes))
            if part.last:
                self.keys = {key for chunk in self._chunks for key in chunk}
                self.next_seq, self._chunks = part.next_seq, []
                self.snapshots += 1
        elif kind == "delta":
            assert self.snapshots and not self._chunks
            assert report.delta.seq == self.next_seq
            self.next_seq += 1
            for op in report.delta.ops:
                keys = array("Q", op.hashes)
                if op.kind == KvOpMessage.STORED:
                    self.keys.update(keys)
                elif op.kind == KvOpMessage.REMOVED:
                    self.keys.difference_update(keys)
                else:
                    self.keys.clear()

    def last(self, kind: str) -> Any:
        return next((getattr(r, kind) for r in reversed(self.reports) if r.WhichOneof("report") == kind), None)

    def count(self, kind: str) -> int:
        return sum(r.WhichOneof("report") == kind for r in self.reports)


class SmallRouter(fleet_pb2_grpc.FleetServicer):
    def __init__(self, router_id: str) -> None:
        self.router_id = router_id
        self.views: list[View] = []
        self.port = 0
        self._contexts: list[Any] = []
        self._server: Any = None

    @property
    def view(self) -> View:
        return self.views[-1]

    async def Join(self, request_iterator: Any, context: Any) -> None:
        view = View()
        self.views.append(view)
        self._contexts.append(context)
        await context.write(RouterNotice(welcome=Welcome(router_id=self.router_id)))
        while isinstance(report := await context.read(), WorkerReport):
            view.take(report)

    async def say(self, **notice: Any) -> None:
        await self._contexts[-1].write(RouterNotice(**notice))

    async def start(self) -> None:
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        fleet_pb2_grpc.add_FleetServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)


@contextlib.asynccontextmanager
async def routers(*names: str) -> AsyncIterator[list[SmallRouter]]:
    made = [SmallRouter(name) for name in names]
    for router in made:
        await router.start()
    try:
        yield made
    finally:
        for router in made:
            await router.stop()


def cached(worker: Worker) -> set[int]:
    assert isinstance(worker.engine, FakeEngine)
    return worker.engine.cache.cached_keys()


def addresses(made: list[SmallRouter]) -> list[str]:
    return [f"127.0.0.1:{router.port}" for router in made]


async def fill(worker: Worker, seeds: range, length: int = 200) -> None:
    async with attached(worker.address, "filler") as router:
        legs = [await router.start([20 + (seed * 7 + i * i * seed) % 350 for i in range(length)], greedy(40)) for seed in seeds]
        for leg in legs:
            await router.answer(leg)


async def test_snapshot_and_deltas_give_every_router_the_engine_s_cache(worker_model_dir: Path) -> None:
    tiny = {"kv_blocks": 40}
    async with routers("a", "b") as made:  # noqa: SIM117 - their addresses come first
        async with fake_worker(worker_model_dir, routers=addresses(made), fake=tiny) as worker:
            await eventually(lambda: all(r.views and r.view.snapshots for r in made))
            await fill(worker, range(12))
            await eventually(lambda: all(r.view.keys == cached(worker) for r in made))
            assert cached(worker)
            assert made[0].view.count("delta") > 0
            removed = [
                op for r in made[0].view.reports for op in r.delta.ops if op.kind == KvOpMessage.REMOVED
            ]  # fmt: skip
            assert removed, "the cache is small: it must evict"


async def test_hello_carries_the_worker_s_facts(worker_model_dir: Path) -> None:
    async with routers("a") as made, fake_worker(worker_model_dir, "w7", routers=addresses(made), pool="decode") as worker:
        await eventually(lambda: made[0].views and made[0].view.last("hello"))
        hello, info = made[0].view.last("hello"), worker.engine.info
        assert (hello.worker_id, hello.pool, hello.role, hello.address) == ("w7", "decode", "decode", worker.address)
        assert (hello.model, hello.model_digest, hello.kv_compat) == ("tiny", info.model_digest, info.kv_compat)
        assert (hello.incarnation, hello.hash.root) == (worker.incarnation, info.hash_root)
        assert (hello.capacity.block_size, hello.capacity.vocab_size) == (info.block_size, info.vocab_size)
        assert set(hello.capabilities) == set(info.capabilities)


async def test_a_router_that_asks_gets_a_snapshot(worker_model_dir: Path) -> None:
    async with routers("a") as made, fake_worker(worker_model_dir, routers=addresses(made)) as worker:
        await eventually(lambda: made[0].views and made[0].view.snapshots)
        await fill(worker, range(3))
        await made[0].say(resend=Resend())
        await eventually(lambda: made[0].view.snapshots == 2)
        await eventually(lambda: made[0].view.keys == cached(worker))


async def test_a_router_that_comes_back_is_joined_anew(worker_model_dir: Path) -> None:
    async with routers("a") as made, fake_worker(worker_model_dir, routers=addresses(made)) as worker:
        router = made[0]
        await eventually(lambda: router.views)
        await router.stop()
        await fill(worker, range(3))
        await router.start()
        await eventually(lambda: len(router.views) > 1 and router.view.snapshots)
        await eventually(lambda: router.view.keys == cached(worker))
        assert cached(worker)
        await eventually(lambda: worker.reports.joined == 1)


async def test_a_stop_is_heard_while_a_stream_is_ending(worker_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker and its routers often go together: what ends the stream must not swallow the worker's own end."""
    write_all, ending = Link.write_all, asyncio.Event()

    async def slow_to_end(self: Link, *args: Any) -> None:
        try:
            await write_all(self, *args)
        finally:
            ending.set()
            await asyncio.sleep(0.1)

    monkeypatch.setattr(Link, "write_all", slow_to_end)
    async with routers("a") as made, fake_worker(worker_model_dir, routers=addresses(made)) as worker:
        await eventually(lambda: made[0].views and made[0].view.snapshots)
        await made[0].stop()
        await ending.wait()
        async with asyncio.timeout(10):
            await worker.stop()


async def test_a_defect_ends_one_stream_and_not_the_reports(
    worker_model_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    greet, calls = Reports._greet, iter([True])

    def fails_once(self: Reports, link: Link) -> None:
        if next(calls, False):
            raise RuntimeError("a defect")
        greet(self, link)

    monkeypatch.setattr(Reports, "_greet", fails_once)
    async with routers("a") as made, fake_worker(worker_model_dir, routers=addresses(made)):
        await eventually(lambda: made[0].views and made[0].view.snapshots)
    assert [r.message for r in caplog.records if r.exc_info] == ["join failed"]


async def test_load_is_reported_while_idle_and_names_the_legs_it_includes(worker_model_dir: Path) -> None:
    async with routers("a") as made, fake_worker(worker_model_dir, routers=addresses(made)) as worker:
        await eventually(lambda: made[0].views and made[0].view.count("load") >= 3)
        assert made[0].view.last("load").last_leg_id == 0
        async with attached(worker.address, "a") as client, attached(worker.address, "other") as other:
            await other.run([20] * 30, greedy(2), leg_id=99)
            leg = await client.start([21] * 50, greedy(3000))
            await client.until(lambda: client.legs[leg].token_ids)
            await eventually(lambda: made[0].view.last("load").last_leg_id == leg)
            load = made[0].view.last("load")
            await eventually(lambda: made[0].view.last("load").context_tokens > 50)
            assert (load.running, load.waiting) == (1, 0)
            assert load.kv_usage > 0
        await eventually(lambda: made[0].view.last("load").running == 0)
        assert made[0].view.last("load").steps > 0


async def test_costs_are_reported_when_they_change(worker_model_dir: Path) -> None:
    async with routers("a") as made, fake_worker(worker_model_dir, routers=addresses(made)) as worker:
        await fill(worker, range(4))
        await eventually(lambda: made[0].views and made[0].view.last("cost"))
        cost = made[0].view.last("cost")
        assert cost.samples > 0
        assert cost.base_s >= 0


async def test_a_role_is_taken_from_the_lowest_router_only(worker_model_dir: Path) -> None:
    async with routers("a", "b") as made, fake_worker(worker_model_dir, routers=addresses(made), pool="prefill") as worker:
        await eventually(lambda: worker.reports.joined == 2)
        await made[1].say(role=RoleAssignment(role="decode", epoch=9))
        await made[0].say(role=RoleAssignment(role="both", epoch=3))
        await eventually(lambda: all(r.view.last("hello").role == "both" for r in made))
        assert made[1].view.last("hello").role_epoch == 3
        assert worker.state.role.role == "both"
        await made[0].say(role=RoleAssignment(role="decode", epoch=2))
        await made[0].say(role=RoleAssignment(role="nonsense", epoch=8))
        await made[0].say(role=RoleAssignment(role="prefill", epoch=4))
        await eventually(lambda: made[0].view.last("hello").role == "prefill")
        assert made[0].view.last("hello").role_epoch == 4


async def test_draining_is_told_to_routers_that_are_there_and_that_come(worker_model_dir: Path) -> None:
    async with routers("a", "b") as made:
        late = made[1]
        await late.stop()
        async with fake_worker(worker_model_dir, routers=addresses(made)) as worker:
            await eventually(lambda: made[0].views and made[0].view.snapshots)
            await worker.drain("scale-down")
            await eventually(lambda: made[0].view.last("draining"))
            assert made[0].view.last("draining").reason == "scale-down"
            await late.start()
            await eventually(lambda: late.views and late.view.last("draining"))
            assert late.view.count("hello") == 1


async def test_a_router_s_name_is_resolved_again(worker_model_dir: Path) -> None:
    async with routers("a") as made:
        where = [f"localhost:{made[0].port}"]
        async with fake_worker(worker_model_dir, routers=where, resolve_every_s=0.01) as worker:
            await eventually(lambda: worker.reports.joined == 1)
            await asyncio.sleep(0.05)
            assert len(made[0].views) == 1, "one stream per address, however often it is resolved"


# --- the feed ------------------------------------------------------------------------------------------------------------

_keys = st.integers(0, 30)
_op = st.one_of(
    st.builds(lambda k: KvOp("stored", array("Q", k)), st.lists(_keys, max_size=6)),
    st.builds(lambda k: KvOp("removed", array("Q", k)), st.lists(_keys, max_size=6)),
    st.just(KvOp("cleared", array("Q"))),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(_op, st.just("flush"), st.just("join")), max_size=60))
def test_whenever_a_router_joins_it_ends_with_the_mirror(history: list[KvOp | str]) -> None:
    feed, views = KvFeed(), list[View]()

    def flush() -> None:
        message = feed.flush()
        for view in views:
            if message is not None:
                view.take(WorkerReport.FromString(message))

    for event in [*history, "flush"]:
        if event == "flush":
            flush()
        elif event == "join":
            flush()
            view = View()
            view.reports.append(WorkerReport())  # stands for Hello
            views.append(view)
            for message in feed.snapshot():
                view.take(WorkerReport.FromString(message))
        else:
            assert isinstance(event, KvOp)
            feed.add([event])
    assert all(view.keys == feed.mirror for view in views)


def test_a_large_snapshot_comes_in_chunks_of_at_most_a_mebibyte() -> None:
    feed = KvFeed()
    feed.add([KvOp("stored", array("Q", range(2 * CHUNK_HASHES + 5)))])
    feed.flush()
    parts = feed.snapshot()
    assert len(parts) == 3
    assert max(map(len, parts)) <= 1 << 20
    view = View()
    view.reports.append(WorkerReport())
    for part in parts:
        view.take(WorkerReport.FromString(part))
    assert len(view.keys) == 2 * CHUNK_HASHES + 5


async def test_a_slow_router_gets_a_snapshot_instead_of_a_backlog() -> None:
    link, written, gate = Link(), list[bytes](), asyncio.Event()

    async def write(message: bytes) -> None:
        await gate.wait()
        written.append(message)

    def catch_up(behind: Link) -> None:
        behind.behind = False
        behind.put([b"snapshot"])

    writer = asyncio.create_task(link.write_all(write, catch_up))
    link.put([b"first"])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    link.put([b"x" * (_BACKLOG_BYTES + 1)])
    assert link.behind
    link.put([b"lost with the rest"])
    gate.set()
    await eventually(lambda: len(written) == 2)
    link.put([b"next"])
    await eventually(lambda: len(written) == 3)
    assert written == [b"first", b"snapshot", b"next"]
    writer.cancel()
