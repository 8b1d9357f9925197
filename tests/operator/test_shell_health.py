"""Health that means it: unhealthy where a restart may help, not ready where this replica could not write."""

import pytest

from penstock_operator.shell.health import OUT_OF_REACH_S, STUCK_S, Health


def test_a_standby_that_reaches_the_server_is_ready():
    assert Health(reached_at_s=100).ready(101)


def test_a_leader_is_ready_once_it_has_looked_at_everything():
    health = Health(reached_at_s=100, leading=True)
    assert not health.ready(101)
    health.synced = True
    assert health.ready(101)


def test_without_a_server_it_is_not_ready_and_a_restart_would_not_help():
    health = Health(reached_at_s=100, synced=True)
    assert not health.ready(100 + OUT_OF_REACH_S)
    assert health.troubles(100 + OUT_OF_REACH_S) == []


@pytest.mark.parametrize(
    ("change", "said"), [({"busy_since_s": 0.0}, "a reconcile has been under way"), ({"silent": {"Pod"}}, "the watch of Pod")]
)
def test_what_a_restart_may_help_against_is_named(change, said):
    health = Health(reached_at_s=STUCK_S, synced=True, leading=True, **change)
    (trouble,) = health.troubles(STUCK_S + 1)
    assert said in trouble
    assert not health.ready(STUCK_S + 1)
