"""The oracle says what the fake engine says, stop strings included, and the links pass everything on unchanged."""

import asyncio
from pathlib import Path
from random import Random

import pytest
from chaos.links import Link
from chaos.oracle import Mix, Oracle, answer
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_workers.engine.fake_answer import fake_answer
from penstock_workers.text import LegText

TINY = Path(__file__).resolve().parents[2] / "workers/penstock_workers/tiny/model"


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(TINY, Mix(stops=0.5))


def test_equal_seeds_ask_equal_questions(oracle: Oracle) -> None:
    first, again = ([oracle.ask(rng, i) for i in range(20)] for rng in (Random(3), Random(3)))
    assert first == again
    assert {a.front for a in first} == {"grpc", "http"} and {a.as_ids for a in first} == {True, False}


def test_the_text_is_the_workers_own(oracle: Oracle) -> None:
    rng = Random(4)
    stopped = 0
    for number in range(60):
        ask = oracle.ask(rng, number)
        sampling = ask.sampling
        whole = fake_answer(ask.prompt_ids, sampling.max_tokens, choices=oracle.choices, seed=sampling.seed)
        leg = LegText(oracle.tokens, ask.prompt_ids, stops=sampling.stop)
        pushed = leg.push(whole)
        assert leg.take(finished=True) == ask.expected.text
        assert tuple(whole[: pushed.kept]) == ask.expected.ids
        assert ask.expected.finish == ("stop" if pushed.stop else "length")
        stopped += ask.expected.finish == "stop"
    assert 10 < stopped < 50


@settings(deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
)
def test_an_answer_stops_at_the_stop_string_that_is_complete_first(spelled: list[str], stops: list[str]) -> None:
    expected = answer(range(len(spelled)), spelled, stops)
    whole = "".join(spelled)
    ends = [(whole.find(s) + len(s), whole.find(s)) for s in stops if s in whole]
    if not ends:
        assert (expected.text, expected.finish, len(expected.ids)) == (whole, "length", len(spelled))
        return
    # Of those complete within one token, the one that is complete first in the text.
    assert expected.finish == "stop"
    assert expected.text == whole[: min(ends)[1]]
    assert len("".join(spelled[: len(expected.ids)])) >= min(ends)[0] > len("".join(spelled[: len(expected.ids) - 1]))


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


async def test_a_link_passes_on_hides_delays_and_cuts() -> None:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    link = Link(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await link.open()
    host, port = link.address.split(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"a" * 100_000)
        assert await reader.readexactly(100_000) == b"a" * 100_000
        link.start_hole()
        writer.write(b"b")
        late, late_writer = await asyncio.open_connection(host, int(port))
        late_writer.write(b"c")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(late.read(1), 0.05)
        link.end_hole()
        assert (await reader.readexactly(1), await late.readexactly(1)) == (b"b", b"c")
        link.lag_s = 0.03
        for i in range(5):
            writer.write(bytes([i]))
            await asyncio.sleep(0.01)
        link.lag_s = 0.0
        writer.write(b"\x05")
        assert await reader.readexactly(6) == bytes(range(6))
        link.cut()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        late_writer.close()
        writer.close()
    finally:
        await link.close()
        server.close()
