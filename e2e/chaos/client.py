"""Streams through the fronts, each judged as it comes.

Promise: a stream ends with a verdict, whatever the service does: one that makes no progress for `HUNG_S` is given up as hung.
Time in which this process itself did not run is nobody's fault and counts for no verdict; the run's document tells its sum.
The client retries what was refused, on another router, and asks anew what a killed router broke; nothing else.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import grpc
from chaos.fleet import Fleet, Process
from chaos.oracle import Ask
from chaos.verdict import DEFECTS, REFUSED, RIGHT, ROUTER_BROKEN, End, Seen, Verdict, hear, judge

from penstock_proto.v1.common_pb2 import FinishReason
from penstock_proto.v1.inference_pb2 import GenerateResponse

GENERATE = "/penstock.v1.Inference/Generate"
HUNG_S = 20.0  # above hold_s and lost_after_s together
GIVE_UP_S = 60.0  # a request that is refused for so long is lost
LOOK_S = 0.5  # how often streams are looked at
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 0.8
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500), ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
)  # fmt: skip
FINISHES = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


@dataclass(slots=True, eq=False)
class Watched:
    """A stream under way."""

    ask: Ask
    request_id: str
    router: str
    incarnation: int
    began: float
    moved: float
    cancel: Callable[[], Any]
    seen: Seen = field(default_factory=Seen)
    hung: bool = False
    starved_s: float = 0.0  # of the time since it moved, what this process did not run
    gaps: list[float] = field(default_factory=list)
    legs: list[str] = field(default_factory=list)

    def heard(self, ids: list[int] | None, text: str, finish: str, counted: int) -> None:
        now = time.monotonic()
        if self.seen.tokens or self.seen.chars:
            self.gaps.append(now - self.moved)
        self.moved, self.starved_s = now, 0.0
        self.seen = hear(self.seen, self.ask.expected, ids, text, finish, counted)


@dataclass
class Tally:
    """What came of everything."""

    outcomes: Counter[str] = field(default_factory=Counter)
    fronts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    legs: Counter[str] = field(default_factory=Counter)
    defects: list[dict[str, Any]] = field(default_factory=list)
    attempts: int = 0  # calls
    starved_s: float = 0.0  # this process did not run
    tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)  # the longest of each stream
    moved_gaps_s: list[float] = field(default_factory=list)  # of streams that were resumed or handed over
    ttft_s: list[float] = field(default_factory=list)
    ends: list[tuple[float, int]] = field(default_factory=list)  # when a stream ended right, and its tokens


class Checker:
    """Asks the fleet and judges it. `closed` ends its channels."""

    def __init__(self, fleet: Fleet, tally: Tally, *, began: float, hung_s: float = HUNG_S) -> None:
        self.fleet = fleet
        self.tally = tally
        self.open: set[Watched] = set()
        self._began = began
        self._hung_s = hung_s
        self._channels = {r.name: grpc.aio.insecure_channel(r.grpc, options=OPTIONS) for r in fleet.routers}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Checker":
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2.0)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0), read_bufsize=1 << 20)
        self._watch = asyncio.create_task(self._give_up())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._watch.cancel()
        if self._session is not None:
            await self._session.close()
        for channel in self._channels.values():
            await channel.close(None)

    def heard(self, tokens: int) -> None:
        """So many tokens came, over gRPC; for those who count them."""

    async def _give_up(self) -> None:
        looked = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            starved, looked = max(0.0, now - looked - 2 * LOOK_S), now
            self.tally.starved_s += starved
            for watched in list(self.open):
                watched.starved_s += starved
                if now - watched.moved - watched.starved_s > self._hung_s and not watched.hung:
                    watched.hung = True
                    watched.cancel()

    async def stream(self, ask: Ask, first: int) -> None:
        """One request to its end, retries included. `first`: which router is asked first."""
        wait, until, attempt = FIRST_WAIT_S, time.monotonic() - self.tally.starved_s + GIVE_UP_S, 0
        while True:
            router = self.fleet.routers[(first + attempt) % len(self.fleet.routers)]
            verdict = await self._attempt(ask, router, f"{ask.request_id}.{attempt}")
            attempt += 1
            if verdict.outcome == REFUSED and time.monotonic() - self.tally.starved_s < until:
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
                continue
            if verdict.outcome == ROUTER_BROKEN:
                wait = FIRST_WAIT_S
                continue
            if verdict.outcome == REFUSED:  # for a minute: nobody serves it
                self._defect(ask, None, Verdict("lost", f"refused for {GIVE_UP_S:g} s: {verdict.detail}"))
                self.tally.outcomes["lost"] += 1
            return

    async def _attempt(self, ask: Ask, router: Process, request_id: str) -> Verdict:
        tally, now = self.tally, time.monotonic()
        tally.attempts += 1
        watched = Watched(ask, request_id, router.name, router.incarnation, now, now, lambda: None)
        self.open.add(watched)
        run: Callable[[Watched, Process], Awaitable[End]] = self._grpc if ask.front == "grpc" else self._http
        try:
            end = await run(watched, router)
        finally:
            self.open.discard(watched)
        if end.code != "OK":
            await asyncio.sleep(0)  # a nemesis that just struck has noted it
            died = watched.incarnation in router.killed
            end = replace(end, router_died=died, hung=watched.hung)
        verdict = judge(watched.seen, ask.expected, end, tells_ids=ask.front == "grpc")
        self._count(watched, verdict)
        return verdict

    def _count(self, watched: Watched, verdict: Verdict) -> None:
        tally, ask = self.tally, watched.ask
        tally.outcomes[verdict.outcome] += 1
        tally.legs.update(watched.legs)
        if verdict.outcome == REFUSED:
            tally.refusals[verdict.detail[:120]] += 1
        if verdict.outcome in DEFECTS:
            self._defect(ask, watched, verdict)
        if verdict.outcome == RIGHT:
            tally.fronts[ask.front] += 1
            tally.tokens += len(ask.expected.ids)
            tally.ends.append((watched.moved - self._began, len(ask.expected.ids)))
            if watched.gaps:
                tally.gaps_s.append(max(watched.gaps))
                if any(leg.startswith(("resume", "handoff")) for leg in watched.legs):
                    tally.moved_gaps_s.append(max(watched.gaps))

    def _defect(self, ask: Ask, watched: Watched | None, verdict: Verdict) -> None:
        entry: dict[str, Any] = {
            "at_s": round(time.monotonic() - self._began, 2), "request_id": ask.request_id, "front": ask.front,
            "outcome": verdict.outcome, "detail": verdict.detail,
        }  # fmt: skip
        if watched is not None:
            entry |= {
                "request_id": watched.request_id, "router": watched.router, "incarnation": watched.incarnation,
                "opened_s": round(watched.began - self._began, 2), "moved_s": round(watched.moved - self._began, 2),
            }  # fmt: skip
        self.tally.defects.append(entry)

    async def _grpc(self, watched: Watched, router: Process) -> End:
        call = self._channels[router.name].unary_stream(
            GENERATE, request_serializer=None, response_deserializer=GenerateResponse.FromString
        )(watched.ask.message(watched.request_id).SerializeToString())
        watched.cancel = call.cancel
        try:
            while isinstance(message := await call.read(), GenerateResponse):
                if not (message.token_ids or message.text or message.finish_reason):
                    continue
                if not watched.seen.tokens:
                    self.tally.ttft_s.append(time.monotonic() - watched.began)
                counted = message.usage.completion_tokens if message.HasField("usage") else -1
                watched.legs += [f"{leg.kind} {leg.outcome}" for leg in message.placement.legs]
                finish = FINISHES.get(message.finish_reason, str(message.finish_reason or ""))
                watched.heard(list(message.token_ids), message.text, finish, counted)
                self.heard(len(message.token_ids))
            code, details = await call.code(), await call.details()
            return End(code.name, details or "")
        except grpc.aio.AioRpcError as error:
            return End(error.code().name, error.details() or "")
        except asyncio.CancelledError:
            if watched.hung:
                return End("CANCELLED")
            raise
        finally:
            call.cancel()

    async def _http(self, watched: Watched, router: Process) -> End:
        assert self._session is not None
        task = asyncio.ensure_future(self._sse(self._session, watched, router))
        watched.cancel = task.cancel
        try:
            return await task
        except asyncio.CancelledError:
            if watched.hung:
                return End("CANCELLED")
            task.cancel()
            raise

    async def _sse(self, session: aiohttp.ClientSession, watched: Watched, router: Process) -> End:
        url, headers = f"http://{router.http}/v1/completions", {"x-request-id": watched.request_id}
        try:
            async with session.post(url, json=watched.ask.body(), headers=headers) as answer:
                if answer.status != 200:
                    code = {503: "UNAVAILABLE", 429: "RESOURCE_EXHAUSTED"}.get(answer.status, f"HTTP {answer.status}")
                    return End(code, (await answer.text())[:200])
                event = ""
                async for raw in answer.content:
                    line = raw.decode().rstrip("\n")
                    if line.startswith("event: "):
                        event = line[7:]
                    elif line == "data: [DONE]":
                        return End("OK")
                    elif line.startswith("data: "):
                        if event == "error":
                            error = json.loads(line[6:])["error"]
                            return End(str(error.get("code")), str(error.get("message"))[:200])
                        _take(watched, json.loads(line[6:]))
                return End("ENDED", "the body ended without [DONE]")
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            return End("UNAVAILABLE", f"{type(error).__name__}: {error}")


def _take(watched: Watched, chunk: dict[str, Any]) -> None:
    usage = chunk.get("usage") or {}
    counted = int(usage.get("completion_tokens", -1))
    for choice in chunk["choices"]:
        if choice["text"] or choice["finish_reason"]:
            watched.heard(None, choice["text"], choice["finish_reason"] or "", counted)
    if not chunk["choices"] and counted >= 0:
        watched.seen = replace(watched.seen, counted=counted)
