"""HTTP cases against a live router process: bodies made from the front's own field tables, then mutated; headers, framing,
methods and paths as they should not be; clients that leave. The router's workers are functions inside its process.

No answer may be a 5xx that is the caller's fault, every error has OpenAI's shape, nothing is logged with a traceback, and
after each batch nothing is held and the next request is served.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

from aiohttp import web
from fuzz_core import Findings, LogTrap, VirtualRouter, command_line, hello, mutated, quiet

from penstock_proto.v1.common_pb2 import FinishReason
from penstock_proto.v1.fleet_pb2 import LoadReport, WorkerReport
from penstock_proto.v1.worker_pb2 import LegOutput, StartLeg, StepOutputs
from penstock_router.config import RequestLimits
from penstock_router.serve.http_body import CHAT_NEUTRAL, CHAT_USED, COMPLETION_NEUTRAL, COMPLETION_USED
from penstock_router.serve.http_server import listen

BATCH = 2_000
CLIENTS = 8
WAIT_S = 0.5  # for an answer to a request that may be incomplete
MAX_BODY = 256 * 1024
ANY = (
    None, True, False, 0, 1, -1, 2, 9, 21, 255, 1000, 10**6, 2**31, 2**32, 2**63, 2**64, 10**30, 0.5, 1.0, -0.5, 2.1, 1e308,
    "", "a", "once upon a time", "\ud800", "\x00", "é🦀", "x" * 2000, [], [""], ["a"], ["a"] * 20, [1, 2, 3],
    [0, 70_000], [[1, 2], [3]], {}, {"type": "text"}, {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    {"include_usage": True}, {"a": {"b": [{}]}}, [{"role": "user", "content": "hi"}], float("nan"), float("inf"),
)  # fmt: skip
GOOD: dict[str, tuple[Any, ...]] = {
    "model": ("tiny",), "max_tokens": (1, 2, 5), "max_completion_tokens": (2,), "temperature": (0, 0.7), "top_p": (1, 0.5),
    "n": (1, 2),
    "stop": ("z", ["y", "z"]), "stream": (True, False), "seed": (1, -1), "user": ("me",), "logprobs": (True, 2),
    "prompt": ("once", ["a", "b"], [1, 2, 3], [[1], [2]]), "request_id": ("r1",),
    "messages": ([{"role": "user", "content": "hi"}], [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
    "guided_regex": ("[a-z]+", "(", "(?i)[\x00-\U0010ffff]"), "guided_json": ({"type": "object"}, "{", {"type": 5}),
    "stream_options": ({"include_usage": True},), "response_format": ({"type": "text"}, {"type": "json_object"}),
}  # fmt: skip
HEADERS: tuple[bytes, ...] = (
    b"x-request-id: mine", b"x-request-id: \xff\xfe", b"x-request-id: " + b"i" * 200, b"x-request-timeout-ms: 0",
    b"x-request-timeout-ms: 5000", b"x-request-timeout-ms: -1", b"x-request-timeout-ms: \xb2",
    b"x-request-timeout-ms: " + b"9" * 5000, b"x-penstock-service-class: gold",
    b"x-penstock-service-class: default", b"x-penstock-explain: maybe",
    b"x-penstock-explain: 1", b"x-penstock-program: p 1", b"idempotency-key: once", b"idempotency-key: " + b"k" * 300,
    b"idempotency-key: \x01",
    b"x-long: " + b"v" * 9000, b"bad header", b": empty", b"expect: 100-continue", b"expect: magic", b"connection: close",
    b"content-encoding: gzip", b"content-encoding: br", b"content-type: text/plain; charset=nonsense", b"accept-encoding: gzip",
    b"upgrade: h2c", b"transfer-encoding: gzip, chunked", b"host: a\r\nhost: b", b"cookie: " + b"c=\xff" * 30,
)  # fmt: skip
PATHS = (
    "/v1/models",
    "/v1/models/tiny",
    "/v1/models/" + "x" * 500,
    "/v1/none",
    "/",
    "/healthz",
    "/readyz",
    "/v1/models/%ff%00",
    "*",
    "//x",
)
MAY_TIME_OUT = b"x-request-timeout-ms"
OURS = re.compile(rb"^(POST /v1/(chat/)?completions|GET /v1/models|GET /(healthz|readyz)) HTTP")  # aiohttp itself answers others


def fields_of(chat: bool) -> list[str]:
    return sorted({*CHAT_USED, *CHAT_NEUTRAL} if chat else {*COMPLETION_USED, *COMPLETION_NEUTRAL})


def body_of(rng: random.Random, chat: bool) -> bytes:
    names = fields_of(chat)
    body: dict[str, Any] = {}
    body["messages" if chat else "prompt"] = rng.choice(GOOD["messages" if chat else "prompt"])
    body["max_tokens"] = rng.choice((1, 3))
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        name = rng.choice(names) if rng.random() < 0.95 else rng.choice(("made_up", "", "\x00", "é" * 50))
        value = rng.choice(GOOD[name]) if name in GOOD and rng.random() < 0.6 else rng.choice(ANY)
        body[name] = value if rng.random() < 0.8 else [value, {"k": value}]
    if rng.random() < 0.1:
        body.pop("messages" if chat else "prompt", None)
    data = json.dumps(body, ensure_ascii=rng.random() < 0.8).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        data = mutated(data, rng)
    if rng.random() < 0.004:
        data = rng.choice((b"[" * 100_000, b'{"a":' * 50_000, b"x" * (MAX_BODY + 1), b'{"seed": ' + b"9" * 100_000 + b"}"))
    return data


def case_of(rng: random.Random) -> tuple[bytes, bool]:
    """A request's octets, and whether its client waits for the answer."""
    chat = rng.random() < 0.5
    method, path = "POST", "/v1/chat/completions" if chat else "/v1/completions"
    data = body_of(rng, chat)
    if rng.random() < 0.08:
        method, path = rng.choice(("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "BREW", "post")), rng.choice((path, *PATHS))
    head = [f"{method} {path} HTTP/1.1".encode(), b"host: penstock", b"content-type: application/json"]
    head += rng.sample(HEADERS, rng.choice((0, 0, 0, 1, 2)))
    framing = rng.random()
    if framing < 0.96:
        head.append(b"content-length: %d" % len(data))
        sent = data
    elif framing < 0.985:
        head.append(b"transfer-encoding: chunked")
        sent = (
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
            if rng.random() < 0.6
            else rng.choice((b"zz\r\n", b"ffffffffffffffffff\r\n", b"5\r\nab"))
        )
    else:
        head.append(
            rng.choice(
                (
                    b"content-length: -1",
                    b"content-length: 99999999999",
                    b"content-length: abc",
                    b"content-length: %d" % (len(data) + 5),
                )
            )
        )
        sent = data
    octets = b"\r\n".join(head) + b"\r\n\r\n" + sent
    if rng.random() < 0.03:
        octets = mutated(octets, rng)
    return octets, rng.random() < 0.97


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body


async def read_answer(reader: asyncio.StreamReader) -> Answer | None:
    """None: the connection ended without one."""
    while True:
        line = await reader.readline()
        if not line:
            return None
        status = int(line.split()[1])
        headers: dict[str, str] = {}
        while (row := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = row.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if status != 100:
            break
    if headers.get("transfer-encoding") == "chunked":
        parts = []
        while size := int((await reader.readline()) or b"0", 16):
            parts.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
        return Answer(status, headers, b"".join(parts))
    length = headers.get("content-length")
    body = await reader.readexactly(int(length)) if length is not None else await reader.read()
    return Answer(status, headers, body)


def judged(octets: bytes, answer: Answer) -> str:
    """What is wrong with an answer; empty: nothing."""
    if b"Traceback" in answer.body or b".py" in answer.body:
        return "a traceback in the answer"
    if answer.status >= 500 and not (answer.status == 504 and MAY_TIME_OUT in octets):
        return f"status {answer.status}: {answer.body[:200]!r}"
    if "x-request-id" not in answer.headers:
        return f"status {answer.status} without x-request-id"
    if answer.status >= 400 and answer.body and not (answer.status == 417 and not OURS.search(octets)):
        try:
            error = json.loads(answer.body)["error"]
            if not error["message"] or not error["type"] or set(error) != {"message", "type", "param", "code"}:
                return f"status {answer.status}: error {error}"
        except (ValueError, KeyError, TypeError):
            return f"status {answer.status} with a body of another shape: {answer.body[:100]!r}"
    if b"event: error" in answer.body and MAY_TIME_OUT not in octets:
        return f"a stream ended with {answer.body[-300:]!r}"
    return ""


class HttpFuzz:
    def __init__(self, seed: int, port: int) -> None:
        self.rng = random.Random(seed)
        self.port = port
        self.findings = Findings()

    async def client(self, cases: int) -> None:
        pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for _ in range(cases):
            self.findings.cases += 1
            octets, waits = case_of(self.rng)
            reused = pair is not None
            pair = pair or await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
            outcome, again = await self.case(*pair, octets, waits)
            if outcome == "cut" and reused:
                # The server closed after an answer to a request that it had not read whole; this one it never saw.
                pair[1].close()
                pair = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
                outcome, again = await self.case(*pair, octets, waits)
            self.findings.outcomes[outcome] += 1
            if not again:
                pair[1].close()
                pair = None
        if pair is not None:
            pair[1].close()

    async def case(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, octets: bytes, waits: bool
    ) -> tuple[str, bool]:
        """What came of it, and whether the connection may be used again."""
        try:
            writer.write(octets)
            if not waits:
                await asyncio.sleep(self.rng.choice((0, 0.002)))
                return "left", False
            async with asyncio.timeout(WAIT_S):
                answer = await read_answer(reader)
        except TimeoutError:
            return "waits for more", False  # a body that was announced and did not come
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return "cut", False
        if answer is None:
            return "cut", False
        if wrong := judged(octets, answer):
            self.findings.fault(f"{wrong}; request {octets[:300]!r}")
        again = answer.headers.get("connection", "").lower() != "close" and octets.count(b"HTTP/1.1") == 1
        return str(answer.status), again

    async def rest(self) -> None:
        """Nothing is held, nothing was logged with a traceback, the next request is served."""
        until = time.monotonic() + 10
        while (state := await self.ask("GET /fuzz/rest"))["held"] and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if state["held"] or state["faults"]:
            self.findings.fault(f"after {self.findings.cases} cases: held {state['held']!r}, logged {state['faults'][:5]}")
        served = await self.ask("POST /v1/completions", b'{"prompt": "next", "max_tokens": 2}')
        if not served.get("choices"):
            self.findings.fault(f"after {self.findings.cases} cases the next request got {served}")

    async def ask(self, what: str, body: bytes = b"") -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{what} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(10):
            answer = await read_answer(reader)
        writer.close()
        return json.loads(answer.body) if answer is not None else {}


# The router's process.


def answers(link: Any, leg: StartLeg) -> None:
    count = max(1, leg.sampling.max_tokens - leg.emitted)
    data = array("I", [97] * count).tobytes()
    out = LegOutput(
        leg_id=leg.leg_id, token_ids=data, text="a" * count, chars_sent=leg.chars_sent + count, finish_reason=FinishReason.LENGTH
    )
    asyncio.get_running_loop().call_soon(link.message, StepOutputs(legs=[out]).SerializeToString())


async def serve() -> None:
    quiet()
    findings = Findings()
    virtual = VirtualRouter(answers, limits=RequestLimits(max_body_bytes=MAX_BODY), stall_s=1.0, hold_s=5.0)
    joined = virtual.join(hello())
    load = WorkerReport(load=LoadReport()).SerializeToString()

    async def rest(request: web.Request) -> web.Response:
        held = virtual.leaks()
        names = virtual.core.ids.open_names
        return web.json_response({"held": held or (f"names {names}" if names else ""), "faults": findings.faults})

    virtual.router.app.router.add_get("/fuzz/rest", rest)
    with LogTrap(findings):
        runner, port = await listen(virtual.router.app, "127.0.0.1", 0)
        print(port, flush=True)
        while sys.stdin.fileno() not in await readable():
            joined.message(load)
        await runner.cleanup()
        await virtual.close()


async def readable() -> set[int]:
    """The parent's end of stdin is closed when it goes."""
    loop, closed = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), closed.set)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(closed.wait(), 0.3)
    loop.remove_reader(sys.stdin.fileno())
    return {sys.stdin.fileno()} if closed.is_set() else set()


async def run(cases: int, seed: int) -> Findings:
    serving = [sys.executable, __file__, "--serve"]
    # PYTHONSAFEPATH, which `make` sets, keeps a script's own folder off the path.
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(serving, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)  # noqa: ASYNC220 - nothing runs yet
    try:
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        fuzz = HttpFuzz(seed, port)
        for done in range(0, cases, BATCH):
            share = min(BATCH, cases - done) // CLIENTS
            await asyncio.gather(*(fuzz.client(share) for _ in range(CLIENTS)))
            await fuzz.rest()
            if done == BATCH or done + BATCH >= cases:
                fuzz.findings.weigh(process.pid)
        return fuzz.findings
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    if "--serve" in sys.argv:
        asyncio.run(serve())
    else:
        sys.exit(command_line(run))
