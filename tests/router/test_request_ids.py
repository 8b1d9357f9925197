"""The table of named requests, by itself and against a plain model of it."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_router.faults import AlreadyExists
from penstock_router.request_ids import RequestIds, mark_of


def told(*names: str) -> bytes:
    return array("Q", map(mark_of, names)).tobytes()


def test_marks_tell_names_apart_and_no_name_has_none() -> None:
    assert mark_of("") == 0
    marks = {mark_of(f"request-{i}") for i in range(10_000)}
    assert len(marks) == 10_000 and 0 not in marks and max(marks) < 2**64


def test_an_open_name_is_refused_and_is_free_after_a_failure_before_its_first_token() -> None:
    ids = RequestIds()
    ids.open("a", 0.0)
    with pytest.raises(AlreadyExists, match="request_id: is open at this router"):
        ids.open("a", 1.0)
    ids.open("b", 1.0)
    ids.closed("a", 2.0, began=False)
    ids.open("a", 2.0)
    assert ids.open_names == 2


def test_a_name_whose_answer_began_is_refused_until_its_time_is_over() -> None:
    ids = RequestIds(ttl_s=10.0)
    ids.open("a", 0.0)
    ids.closed("a", 1.0, began=True)
    with pytest.raises(AlreadyExists, match="began already"):
        ids.open("a", 10.9)
    ids.open("a", 11.0)


def test_what_another_router_began_is_refused_here() -> None:
    ids = RequestIds()
    ids.told(told("a", "b"), 0.0)
    for name in ("a", "b"):
        with pytest.raises(AlreadyExists, match="through another router"):
            ids.open(name, 1.0, field="idempotency-key")
    ids.open("c", 1.0)


def test_a_worker_s_word_does_not_close_what_failed_here_without_a_token() -> None:
    """Its token was under way when the client's deadline passed."""
    ids = RequestIds()
    ids.open("a", 0.0)
    ids.closed("a", 1.0, began=False)
    ids.told(told("a"), 1.1)
    ids.open("a", 2.0)
    ids.closed("a", 3.0, began=True)
    with pytest.raises(AlreadyExists):
        ids.open("a", 4.0)


def test_a_client_s_own_retry_is_taken_whatever_is_known_of_its_name() -> None:
    ids = RequestIds()
    ids.open("a", 0.0)
    ids.open("a", 1.0, retry=True)
    assert ids.open_names == 1
    ids.closed("a", 2.0, began=False)  # the attempt before, found dead
    assert ids.open_names == 1
    ids.closed("a", 3.0, began=True)
    assert ids.open_names == 0
    ids.open("a", 4.0, retry=True)


def test_at_most_so_many_are_remembered_the_oldest_forgotten_first() -> None:
    ids = RequestIds(limit=3)
    for number in range(5):
        ids.told(told(str(number)), float(number))
    assert len(ids) == 3
    ids.open("0", 5.0)
    ids.open("1", 5.0)
    for name in "234":
        with pytest.raises(AlreadyExists):
            ids.open(name, 5.0)
    ids.told(array("Q", range(1, 1000)).tobytes(), 6.0)
    assert len(ids) == 3 + ids.open_names


def test_half_a_hash_is_none() -> None:
    ids = RequestIds()
    ids.told(b"\1" * 11, 0.0)
    assert len(ids) == 1


NAMES = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), NAMES),
        st.tuples(st.just("end"), NAMES, st.booleans()),
        st.tuples(st.just("told"), NAMES),
        st.tuples(st.just("wait"), st.sampled_from((1.0, 6.0, 20.0))),
    ),
    max_size=40,
)


@given(STEPS)
def test_a_name_opens_exactly_when_nobody_has_it_and_no_answer_of_it_began_lately(steps: list[tuple[object, ...]]) -> None:
    ids, now = RequestIds(ttl_s=10.0), 0.0
    opened: set[object] = set()
    began: dict[object, float] = {}
    failed: dict[object, float] = {}
    for step in steps:
        match step:
            case ("wait", float(seconds)):
                now += seconds
            case ("told", str(name)):
                ids.told(told(name), now)
                began[name] = now
            case ("end", str(name), bool(tokens)):
                if name in opened:
                    opened.discard(name)
                    ids.closed(name, now, began=tokens)
                    (began if tokens else failed)[name] = now
                    if tokens:
                        failed.pop(name, None)
            case ("open", str(name)):
                spent = name in began and now - began[name] < 10.0
                # A pardon is kept for as long as a mark is; forgetting it sooner or later than that changes nothing else.
                pardoned = name in failed and now - failed[name] < 10.0
                try:
                    ids.open(name, now)
                except AlreadyExists:
                    assert name in opened or (spent and not pardoned)
                else:
                    assert name not in opened and (not spent or name in failed)
                    opened.add(name)
                    failed.pop(name, None)
    assert ids.open_names == len(opened)
