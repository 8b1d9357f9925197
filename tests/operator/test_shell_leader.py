"""Leaders on the fake API server: one at a time, through refusals, silence and sleep."""

import pytest
from kube.fake_api import FakeApi

from penstock_operator.shell.kinds import LEASE
from penstock_operator.shell.leader import Leader
from penstock_operator.shell.lease import Timing
from penstock_operator.shell.ports import Refused, Unreachable

TIMING = Timing(duration_s=15, renew_within_s=10, retry_s=2)


class Time:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def time():
    return Time()


def leader(api, time, me="me"):
    return Leader(api, "n", "l", me, TIMING, time, lambda: 0.0, lambda: 0.5, lambda at_s: None)


async def test_the_first_to_ask_leads_and_the_second_waits(time):
    api = FakeApi()
    first, second = leader(api, time), leader(api, time, "other")
    await first._step()
    await second._step()
    assert (first.may_write(), second.may_write()) == (True, False)


async def test_a_leader_that_is_silent_is_followed_after_its_duration(time):
    api = FakeApi()
    first, second = leader(api, time), leader(api, time, "other")
    await first._step()
    await second._step()
    time.now_s += 14
    await second._step()
    assert not second.may_write()
    assert not first.may_write(), "it stopped by itself, before it is followed"
    time.now_s += 2
    await second._step()
    assert second.may_write()


async def test_a_leader_that_is_followed_knows_at_its_next_look(time):
    api = FakeApi()
    first, second = leader(api, time), leader(api, time, "other")
    await first._step()
    await second._step()
    time.now_s += 20
    await second._step()
    await first._step()
    assert (first.may_write(), second.may_write()) == (False, True)


async def test_a_leader_that_leaves_is_followed_at_once(time):
    api = FakeApi()
    first, second = leader(api, time), leader(api, time, "other")
    await first._step()
    await first.release()
    assert not first.may_write()
    await second._step()
    assert second.may_write()


@pytest.mark.parametrize("fault", [Unreachable("gone"), Refused(500, "InternalError", "m"), Refused(409, "Conflict", "m")])
async def test_a_renewal_that_fails_costs_the_right_to_write_in_time_and_not_before(time, fault):
    api = FakeApi()
    one = leader(api, time)
    await one._step()

    async def fails(kind, body):
        raise fault

    works, api.replace = api.replace, fails
    time.now_s += 9
    await one._step()
    assert one.may_write()
    time.now_s += 2
    assert not one.may_write()
    api.replace = works
    await one._step()
    assert one.may_write(), "nobody took it meanwhile"


async def test_a_write_whose_answer_was_lost_holds(time):
    api = FakeApi()
    one, works = leader(api, time), api.create

    async def lost(kind, body):
        await works(kind, body)
        raise Unreachable("no answer")

    api.create = lost
    await one._step()
    assert not one.may_write()
    await one._step()
    assert one.may_write()


async def test_of_two_who_create_at_once_one_leads(time):
    api = FakeApi()
    first, second, works = leader(api, time), leader(api, time, "other"), api.get

    async def nothing_yet(kind, namespace, name):
        return None

    api.get = nothing_yet
    await first._step()
    await second._step()
    api.get = works
    assert (first.may_write(), second.may_write()) == (True, False)
    held = await api.get(LEASE, "n", "l")
    assert held["spec"]["holderIdentity"] == "me"
