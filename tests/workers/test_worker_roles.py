"""Whose word on a worker's role counts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_workers.pool.roles import ROLES, Assignment, Held, assign

_words = st.builds(
    Assignment, st.sampled_from(["a", "b", "c"]), st.sampled_from([*ROLES, "boss", ""]), st.integers(0, 12)
)  # fmt: skip
_joined = st.frozensets(st.sampled_from(["a", "b", "c", ""]))


@pytest.mark.parametrize(
    ("held", "word", "joined", "want", "why"),
    [
        (Held("prefill"), Assignment("a", "decode", 1), "ab", Held("decode", 1), ""),
        (Held("prefill"), Assignment("b", "decode", 1), "ab", Held("prefill"), "not the lowest router"),
        (Held("prefill"), Assignment("b", "decode", 1), "b", Held("decode", 1), ""),
        (Held("prefill"), Assignment("a", "decode", 1), "", Held("prefill"), "not the lowest router"),
        (Held("prefill", 4), Assignment("a", "decode", 4), "a", Held("prefill", 4), "stale epoch"),
        (Held("prefill", 4), Assignment("a", "decode", 9), "a", Held("decode", 9), ""),
        (Held("prefill", 4), Assignment("a", "prefill", 5), "a", Held("prefill", 4), "no change"),
        (Held("prefill"), Assignment("a", "king", 1), "a", Held("prefill"), "unknown role"),
    ],
)
def test_an_assignment_is_taken_or_refused_for_a_reason(held: Held, word: Assignment, joined: str, want: Held, why: str) -> None:
    assert assign(held, word, joined) == (want, why)


@settings(deadline=None)
@given(st.lists(st.tuples(_words, _joined), max_size=40))
def test_epochs_grow_with_every_change_and_only_the_lowest_router_makes_one(
    history: list[tuple[Assignment, frozenset[str]]],
) -> None:
    held = Held("both")
    for word, joined in history:
        after, why = assign(held, word, joined)
        assert (after == held) == bool(why)
        if not why:
            assert after.epoch > held.epoch and after.role != held.role and after.role in ROLES
            assert word.router_id == min(joined - {""})
        held = after


@settings(deadline=None)
@given(st.permutations([Assignment("a", "prefill", 1), Assignment("a", "decode", 2), Assignment("a", "both", 3)]))
def test_late_words_of_one_router_change_nothing_whatever_their_order(words: list[Assignment]) -> None:
    held = Held("decode")
    for word in words:
        held, _ = assign(held, word, "a")
    assert held == Held("both", 3)
