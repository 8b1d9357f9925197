"""The snapshot against a naive model: whatever is late, lost or told twice, a whole look ends with the truth."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_operator.plan.names import FIELD_MANAGER
from penstock_operator.shell.ports import Key
from penstock_operator.shell.snapshot import Snapshot, pack, unpack

A, B = Key("n", "a"), Key("n", "b")
KIND = "ConfigMap"
NAMES = [(KIND, "n", str(number)) for number in range(3)]


def body(name, version, key):
    return {"kind": KIND, "metadata": {"name": name[2], "namespace": "n", "resourceVersion": str(version)}, "of": key.name}


def offer(snapshot, name, version, key=A):
    return snapshot.offer(name, str(version), key, pack(body(name, version, key)))


def versions(snapshot, key=A):
    return {(KIND, "n", one["metadata"]["name"]): int(one["metadata"]["resourceVersion"]) for one in snapshot.of(key)}


ONE, TWO, THREE = NAMES


def test_the_newer_of_two_states_stays_whichever_comes_first():
    snapshot = Snapshot()
    assert offer(snapshot, ONE, 5) == {A}
    assert offer(snapshot, ONE, 4) == set()
    assert offer(snapshot, ONE, 5) == set(), "an echo is no news"
    assert offer(snapshot, ONE, 6) == {A}
    assert versions(snapshot) == {ONE: 6}


def test_what_is_gone_does_not_come_back_by_a_late_answer_and_may_be_made_anew():
    snapshot = Snapshot()
    offer(snapshot, ONE, 5)
    assert snapshot.gone(ONE, "7") == {A}
    assert offer(snapshot, ONE, 6) == set()
    snapshot.looked()
    assert offer(snapshot, ONE, 6) == set(), "an answer may take as long as a look"
    assert offer(snapshot, ONE, 8) == {A}
    assert versions(snapshot) == {ONE: 8}


def test_a_late_word_that_something_went_does_not_take_what_was_made_anew():
    snapshot = Snapshot()
    offer(snapshot, ONE, 8)
    assert snapshot.gone(ONE, "7") == set()
    assert versions(snapshot) == {ONE: 8}


def test_a_look_finds_what_was_not_told():
    snapshot = Snapshot()
    offer(snapshot, ONE, 1)
    offer(snapshot, TWO, 2)
    assert snapshot.compare(KIND, None, {ONE: ("1", A), TWO: ("2", A)}, "3") == set()
    assert snapshot.compare(KIND, "n", {ONE: ("4", A)}, "5") == {A}
    assert versions(snapshot) == {ONE: 1} and snapshot.stale(A) == {ONE}
    offer(snapshot, ONE, 4)
    assert snapshot.stale(A) == set()


def test_what_came_after_a_look_is_not_taken_by_it():
    snapshot = Snapshot()
    offer(snapshot, ONE, 9)
    assert snapshot.compare(KIND, None, {}, "8") == set()
    snapshot.read(A, KIND, set(), "8")
    assert versions(snapshot) == {ONE: 9}


def test_a_look_at_one_namespace_or_kind_says_nothing_of_another():
    snapshot = Snapshot()
    offer(snapshot, ONE, 1)
    assert snapshot.compare(KIND, "other", {}, "8") == set()
    assert snapshot.compare("Service", "n", {}, "8") == set()
    assert versions(snapshot) == {ONE: 1}


def test_a_kind_that_is_served_no_more_is_forgotten():
    snapshot = Snapshot()
    offer(snapshot, ONE, 1)
    assert snapshot.only({KIND}) == set()
    assert snapshot.only({"Service"}) == {A} and len(snapshot) == 0
    assert offer(snapshot, ONE, 1) == {A}, "and read again when it is back"


def test_a_change_of_owner_concerns_both():
    snapshot = Snapshot()
    offer(snapshot, ONE, 1, A)
    assert offer(snapshot, ONE, 2, B) == {A, B}
    assert snapshot.of(A) == [] and versions(snapshot, B) == {ONE: 2}
    assert snapshot.offer(ONE, "3", None, b"") == {B}, "it has lost its label"
    assert len(snapshot) == 0


def test_an_answer_of_nothing_there_does_not_take_what_came_meanwhile():
    snapshot = Snapshot()
    snapshot.compare(KIND, None, {ONE: ("4", A)}, "5")
    asked_at = snapshot.version(ONE)
    offer(snapshot, ONE, 6)
    snapshot.missing(A, ONE, asked_at)
    assert versions(snapshot) == {ONE: 6}
    snapshot.missing(A, ONE, 6)
    assert len(snapshot) == 0 and snapshot.stale(A) == set()


def test_what_others_own_is_not_kept():
    managed = [{"manager": who, "operation": "Apply", "fieldsV1": {"f:data": {}}} for who in ("them", FIELD_MANAGER)]
    kept = unpack(pack({"metadata": {"name": "a", "managedFields": managed}, "data": {"x": 1}}))
    assert kept == {"metadata": {"name": "a", "managedFields": managed[1:]}, "data": {"x": 1}}


@dataclass
class Truth:
    """Everything that ever was: at each version the state of the whole cluster."""

    history: list[dict] = field(default_factory=lambda: [{}])
    events: list[tuple] = field(default_factory=list)  # (name, version, key or None)

    @property
    def version(self):
        return len(self.history) - 1

    def write(self, name, key):
        now = dict(self.history[-1])
        if key is None:
            if name not in now:
                return
            was = now.pop(name)[1]
            self.events.append((name, self.version + 1, was, True))
        else:
            now[name] = (self.version + 1, key)
            self.events.append((name, self.version + 1, key, False))
        self.history.append(now)


names, keys = st.sampled_from(NAMES), st.sampled_from([A, B])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), names, st.one_of(st.none(), keys)),
        st.tuples(st.just("tell"), st.integers(0, 40)),
        st.tuples(st.just("list"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("get"), names, st.integers(0, 5)),
    ),
    max_size=40,
)


def tell(snapshot, event):
    name, version, key, gone = event
    return snapshot.gone(name, str(version)) if gone else offer(snapshot, name, version, key)


def whole(snapshot, truth, version, bare=False):
    state = truth.history[version]
    if not bare:
        for name, (at, key) in state.items():
            offer(snapshot, name, at, key)
    snapshot.compare(KIND, None, {name: (str(at), key) for name, (at, key) in state.items()}, str(version))


def settle(snapshot, truth):
    """Two looks at the truth, and a reading of what they call out of date."""
    for _ in range(2):
        whole(snapshot, truth, truth.version, bare=True)
        snapshot.looked()
        for key in (A, B):
            for name in snapshot.stale(key):
                now = truth.history[-1].get(name)
                if now is None:
                    snapshot.missing(key, name, snapshot.version(name))
                else:
                    offer(snapshot, name, *now)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_after_any_history_of_late_lost_and_repeated_news_a_look_ends_with_the_truth(history):
    snapshot, truth = Snapshot(), Truth()
    for what, *given_ in history:
        before = {name: snapshot.version(name) for name in NAMES}
        if what == "write":
            truth.write(*given_)
        elif what == "tell" and truth.events:
            tell(snapshot, truth.events[given_[0] % len(truth.events)])
        elif what == "list":
            whole(snapshot, truth, max(0, truth.version - given_[0]), bare=given_[1])
        elif what == "get":
            name, ago = given_
            seen = truth.history[max(0, truth.version - ago)].get(name)
            if seen is not None:
                offer(snapshot, name, *seen)
        for name, at in before.items():
            assert snapshot.version(name) == 0 or snapshot.version(name) >= at, "never back to an older state"
    settle(snapshot, truth)
    for key in (A, B):
        assert versions(snapshot, key) == {name: at for name, (at, who) in truth.history[-1].items() if who == key}
        assert snapshot.stale(key) == set()
    assert len(snapshot) == len(truth.history[-1])


@settings(deadline=None)
@given(st.lists(st.tuples(names, st.one_of(st.none(), keys)), max_size=20), st.randoms(use_true_random=False))
def test_all_events_in_any_order_are_the_truth(writes, shuffled):
    snapshot, truth = Snapshot(), Truth()
    for write in writes:
        truth.write(*write)
    events = list(truth.events)
    shuffled.shuffle(events)
    for event in events:
        tell(snapshot, event)
    for key in (A, B):
        assert versions(snapshot, key) == {name: at for name, (at, who) in truth.history[-1].items() if who == key}
