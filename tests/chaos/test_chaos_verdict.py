"""The judge: a doctored stream is never called right, an undisturbed one always."""

import itertools

from chaos.figures import Counters, percentiles, slope
from chaos.verdict import (
    DEFECTS,
    DOUBLED,
    HUNG,
    LOST,
    REFUSED,
    RIGHT,
    ROUTER_BROKEN,
    WRONG,
    End,
    Expected,
    Seen,
    Verdict,
    hear,
    judge,
)
from hypothesis import given, settings
from hypothesis import strategies as st

OK = End("OK")
Message = tuple[list[int], str]

ids = st.lists(st.integers(0, 50), min_size=1, max_size=40)
cuts = st.lists(st.integers(0, 40), max_size=6)


def spell(token: int) -> str:
    return f"{token}."


def expected_of(tokens: list[int]) -> Expected:
    return Expected(tuple(tokens), "".join(map(spell, tokens)), "length")


def pieces(tokens: list[int], at: list[int]) -> list[Message]:
    edges = sorted({0, len(tokens), *(c for c in at if c < len(tokens))})
    parts = [tokens[a:b] for a, b in itertools.pairwise(edges)]
    return [(part, "".join(map(spell, part))) for part in parts]


def told(
    expected: Expected, messages: list[Message], end: End = OK, *, finish: str = "length", counted: int | None = None
) -> Verdict:
    seen = Seen()
    for i, (part, text) in enumerate(messages):
        last = i == len(messages) - 1
        count = len(expected.ids) if counted is None else counted
        seen = hear(seen, expected, part, text, finish if last else "", count if last else -1)
    return judge(seen, expected, end)


@settings(deadline=None)
@given(ids, cuts)
def test_the_expected_stream_is_right_however_it_is_cut(tokens: list[int], at: list[int]) -> None:
    assert told(expected_of(tokens), pieces(tokens, at)) == Verdict(RIGHT)


@settings(deadline=None)
@given(ids, st.integers(0, 50), cuts, st.data())
def test_a_dropped_message_is_a_defect(tokens: list[int], one_more: int, at: list[int], data: st.DataObject) -> None:
    messages = pieces([*tokens, one_more], [1, *at])
    tokens = [*tokens, one_more]
    del messages[data.draw(st.integers(0, len(messages) - 2))]
    assert told(expected_of(tokens), messages).outcome in DEFECTS


@settings(deadline=None)
@given(ids, cuts, st.data())
def test_a_repeated_message_is_a_defect(tokens: list[int], at: list[int], data: st.DataObject) -> None:
    messages = pieces(tokens, at)
    i = data.draw(st.integers(0, len(messages) - 1))
    messages.insert(i, messages[i])
    assert told(expected_of(tokens), messages).outcome in DEFECTS


def test_tokens_of_before_are_doubled_and_others_are_wrong() -> None:
    expected = expected_of([1, 2, 3, 4])
    first = hear(Seen(), expected, [1, 2], "1.2.")
    assert hear(first, expected, [2], "2.").fault == DOUBLED
    assert hear(first, expected, [9], "9.").fault == WRONG
    assert hear(first, expected, [4], "4.").fault == WRONG
    assert hear(first, expected, [3], "9.").fault == WRONG
    assert hear(first, expected, [3], "2.").fault == DOUBLED


@settings(deadline=None)
@given(ids, cuts, st.data())
def test_a_changed_token_is_a_defect(tokens: list[int], at: list[int], data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(tokens) - 1))
    other = [*tokens[:i], 99, *tokens[i + 1 :]]
    verdict = told(expected_of(tokens), [(part, text) for part, text in pieces(other, at)])
    assert verdict.outcome == WRONG


@settings(deadline=None)
@given(ids, cuts, st.data())
def test_changed_text_of_right_tokens_is_a_defect(tokens: list[int], at: list[int], data: st.DataObject) -> None:
    messages = pieces(tokens, at)
    i = data.draw(st.integers(0, len(messages) - 1))
    messages[i] = (messages[i][0], data.draw(st.sampled_from(["", "x" + messages[i][1], messages[i][1] + "."])))
    assert told(expected_of(tokens), messages).outcome in DEFECTS


@settings(deadline=None)
@given(ids, st.data())
def test_an_answer_that_ends_early_is_lost_even_where_the_status_is_ok(tokens: list[int], data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, len(tokens) - 1))
    expected = expected_of(tokens)
    assert told(expected, pieces(tokens[:kept], [])).outcome == LOST
    unfinished = judge(hear(Seen(), expected, tokens, expected.text), expected, OK)
    assert unfinished.outcome == LOST and unfinished.detail.startswith("OK without a finish")


def test_more_than_the_answer_is_a_defect() -> None:
    expected = expected_of([1, 2])
    done = hear(Seen(), expected, [1, 2], "1.2.", "length", 2)
    assert judge(done, expected, OK) == Verdict(RIGHT)
    assert judge(hear(done, expected, [3], "3."), expected, OK).outcome == DOUBLED
    assert hear(Seen(), expected, [1, 2, 3], "1.2.").fault == WRONG


def test_finish_and_count_must_be_the_answers() -> None:
    expected, messages = expected_of([1, 2]), pieces([1, 2], [])
    assert told(expected, messages, finish="stop").outcome == WRONG
    assert told(expected, messages, counted=1).outcome == WRONG
    assert told(expected, messages, counted=-1).outcome == WRONG


@settings(deadline=None)
@given(ids, st.sampled_from(["UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "CANCELLED", "ENDED"]), st.booleans())
def test_an_end_before_the_first_token_is_refused_or_lost(tokens: list[int], code: str, died: bool) -> None:
    verdict = judge(Seen(), expected_of(tokens), End(code, router_died=died))
    typed = code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
    assert verdict.outcome == (REFUSED if typed or died else LOST)


@settings(deadline=None)
@given(ids, st.sampled_from(["UNAVAILABLE", "ABORTED", "INTERNAL", "ENDED"]), st.booleans())
def test_an_end_after_a_token_is_excused_only_by_the_routers_death(tokens: list[int], code: str, died: bool) -> None:
    expected = expected_of([*tokens, 51])
    seen = hear(Seen(), expected, tokens[:1], spell(tokens[0]))
    assert judge(seen, expected, End(code, router_died=died)).outcome == (ROUTER_BROKEN if died else LOST)


def test_a_defect_before_the_routers_death_stays_one() -> None:
    expected = expected_of([1, 2, 3])
    seen = hear(hear(Seen(), expected, [1], "1."), expected, [7], "7.")
    assert judge(seen, expected, End("UNAVAILABLE", router_died=True)).outcome == WRONG


def test_no_progress_is_hung() -> None:
    expected = expected_of([1, 2])
    assert judge(hear(Seen(), expected, [1], "1."), expected, End("CANCELLED", hung=True)).outcome == HUNG
    assert judge(Seen(), expected, End("CANCELLED", hung=True)).outcome == HUNG


@settings(deadline=None)
@given(ids, cuts)
def test_a_front_of_text_only_is_judged_by_its_text(tokens: list[int], at: list[int]) -> None:
    expected = expected_of(tokens)
    seen = Seen()
    messages = pieces(tokens, at)
    for _, text in messages[:-1]:
        seen = hear(seen, expected, None, text)
    whole = hear(seen, expected, None, messages[-1][1], "length", len(tokens))
    assert judge(whole, expected, OK, tells_ids=False) == Verdict(RIGHT)
    assert judge(hear(seen, expected, None, "", "length", len(tokens)), expected, OK, tells_ids=False).outcome == LOST


def test_figures_add_up() -> None:
    assert percentiles([]) == {"p50": 0.0, "p90": 0.0, "p99": 0.0, "max": 0.0}
    assert percentiles(range(101)) == {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert slope([(0, 1), (1, 3), (2, 5)]) == 2 and slope([]) == slope([(1, 2), (1, 3)]) == 0
    counters = Counters()
    counters.saw("r0", 1, {'x_total{a="1",b="2"}': 3.0})
    counters.saw("r0", 1, {'x_total{a="1",b="2"}': 4.0})
    counters.saw("r0", 2, {'x_total{a="1",b="2"}': 1.0, 'xy_total{a="1"}': 9.0})
    counters.saw("r0", 2, {})
    assert counters.total("x_total") == {"1,2": 5.0}
