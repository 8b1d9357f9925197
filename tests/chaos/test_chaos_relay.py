"""The relay of reports: unchanged but for Hello's address, and each of its faults does what its name says."""

import asyncio
from collections.abc import Callable

import grpc
from chaos.relay import JOIN, Relay

from penstock_proto.v1.fleet_pb2 import Hello, KvDelta, LoadReport, WorkerReport
from penstock_router.wire.client import connect
from penstock_router.wire.server import Call, Server


class Router:
    """Takes reports down, and answers each with its length."""

    def __init__(self, call: Call) -> None:
        self.call = call
        heard.clear()

    def message(self, data: bytes) -> None:
        heard.append(WorkerReport.FromString(data))
        self.call.send(b"n" * len(heard))

    def half_closed(self) -> None:
        self.call.finish()

    def cancelled(self, reason: str) -> None:
        heard.append(reason)

    def writable(self) -> None: ...


class Worker:
    def __init__(self) -> None:
        self.notices: list[bytes] = []
        self.ended: list[grpc.StatusCode] = []

    def message(self, data: bytes) -> None:
        self.notices.append(data)

    def done(self, code: grpc.StatusCode, message: str) -> None:
        self.ended.append(code)


heard: list[WorkerReport | str] = []


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def until_heard(count: int) -> None:
    await until(lambda: len(heard) >= count)


def delta(seq: int) -> WorkerReport:
    return WorkerReport(delta=KvDelta(seq=seq))


async def test_reports_pass_are_held_repeated_lost_and_cut() -> None:
    router = Server()
    router.methods[JOIN.encode()] = Router
    relay = Relay(f"127.0.0.1:{await router.listen('127.0.0.1:0')}", "127.0.0.1:7")
    await relay.open()
    connection = await connect(relay.address)
    worker = Worker()
    call = connection.call(JOIN, worker)
    load = WorkerReport(load=LoadReport(running=3))
    try:
        call.send(WorkerReport(hello=Hello(worker_id="w", address="127.0.0.1:1")).SerializeToString())
        call.send(load.SerializeToString())
        await until_heard(2)
        assert heard == [WorkerReport(hello=Hello(worker_id="w", address="127.0.0.1:7")), load]
        relay.gate.shut = True
        for seq in (1, 2):
            call.send(delta(seq).SerializeToString())
        await asyncio.sleep(0.05)
        assert len(heard) == 2
        relay.gate.open()
        await until_heard(4)
        assert heard[2:] == [delta(1), delta(2)]
        relay.says_twice = True
        call.send(delta(3).SerializeToString())
        await until_heard(6)
        assert heard[4:] == [delta(3), delta(3)] and relay.repeated == 1
        relay.says_twice, relay.loses_kv = False, True
        call.send(delta(4).SerializeToString())
        call.send(load.SerializeToString())
        await until_heard(7)
        assert heard[6] == load and relay.lost == 1
        await until(lambda: len(worker.notices) == 7)
        assert worker.notices == [b"n" * i for i in range(1, 8)]
        relay.cut()
        await until_heard(8)
        await until(lambda: bool(worker.ended))
        assert worker.ended == [grpc.StatusCode.UNAVAILABLE]
    finally:
        connection.close("done")
        await relay.close()
        await router.stop()
