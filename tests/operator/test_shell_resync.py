"""Watches that owe events."""

from penstock_operator.shell.resync import GRACE_S, Told

ONE = ("LLMService", "n", "a")


def test_a_watch_that_tells_everything_is_not_silent():
    told = Told()
    told.event(ONE, "1", gone=False)
    assert told.look({ONE: "1"}, 100) == set()
    assert told.look({ONE: "1"}, 500) == set()


def test_an_event_on_its_way_is_waited_for():
    told = Told()
    assert told.look({ONE: "1"}, 100) == set()
    told.event(ONE, "1", gone=False)
    assert told.look({ONE: "1"}, 100 + GRACE_S) == set()
    assert told.silent == set()


def test_a_change_never_told_makes_its_watch_silent_until_it_tells_something():
    told = Told()
    told.event(ONE, "1", gone=False)
    assert told.look({ONE: "2"}, 100) == set()
    assert told.look({ONE: "3"}, 100 + GRACE_S) == {"LLMService"}
    assert told.silent == {"LLMService"}
    assert told.look({ONE: "3"}, 200) == set(), "told once"
    told.event(ONE, "3", gone=False)
    assert told.silent == set()


def test_an_object_that_changes_all_the_time_is_not_mistaken_for_a_silent_watch():
    told = Told()
    for n in range(50):
        assert told.look({ONE: str(n + 1)}, n * 10.0) == set()
        told.event(ONE, str(n + 1), gone=False)


def test_what_went_untold_is_forgotten_and_does_not_count():
    told = Told()
    told.event(ONE, "1", gone=False)
    assert told.look({}, 100) == set()
    assert told.look({}, 200) == set()
    assert told.versions == {}
