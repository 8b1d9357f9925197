"""One reconcile on the fake API server: order, ownership, the Lease before each write, and the end of a crash at every write."""

import pytest
from kube.fake_api import FakeApi
from kube.standin import CONFIG_MAP, StandIn, service

from penstock_operator.plan.names import SERVICE_LABEL
from penstock_operator.plan.reconcile import Event, Plan, Ref
from penstock_operator.shell.figures import Figures
from penstock_operator.shell.kinds import EVENT, LLM_SERVICE
from penstock_operator.shell.ports import Key, Kind, Listing, Offered, Refused
from penstock_operator.shell.reconciler import LeaseLost, NotOurs, Reconciler
from penstock_operator.shell.sight import Sight

KEY = Key("n", "chat")


def reconciler(api, planner=None, fence=lambda: True):
    return Reconciler(api, planner or StandIn(), fence, Figures(), lambda: 0.0, "me", Sight(api))


async def look(one):
    """As a resync does, and then at the one service."""
    await one.sight.everything([LLM_SERVICE, *one.kinds], ["n"])
    return await one.reconcile(KEY)


def ask(api, **spec):
    api.apply_as("person", LLM_SERVICE, service("n", "chat", **spec))


async def settle(one):
    for _ in range(3):
        await look(one)


async def test_objects_then_deletions_then_status_then_events():
    api = FakeApi()
    ask(api, configs=3)
    one = reconciler(api)
    await settle(one)
    ask(api, configs=1)
    api.writes.clear()
    await look(one)
    assert api.writes == [("delete", "ConfigMap", "chat-1"), ("delete", "ConfigMap", "chat-2"), ("patch", "LLMService", "chat")]
    await look(one)
    assert [verb for verb, kind, _ in api.writes if kind == "Event"] == ["create"]
    assert api.writes[-2][:2] == ("patch", "LLMService"), "the status is written before it is told of"


async def test_a_settled_service_costs_no_write_and_neither_does_a_new_operators_first_look():
    api = FakeApi()
    ask(api, configs=2)
    await settle(reconciler(api))
    api.writes.clear()
    await settle(reconciler(api))
    assert api.writes == []


async def test_the_lease_is_asked_for_before_every_write():
    api, asked = FakeApi(), []
    ask(api, configs=2)
    await look(reconciler(api, fence=lambda: asked.append(len(api.writes)) or True))
    assert asked == list(range(1, len(api.writes))), "the first of all writes is the person's"


async def test_without_the_lease_nothing_is_written():
    api = FakeApi()
    ask(api, configs=2)
    api.writes.clear()
    with pytest.raises(LeaseLost):
        await look(reconciler(api, fence=lambda: False))
    assert api.writes == []


@pytest.mark.parametrize("after", range(8))
async def test_a_reconcile_that_ends_after_any_write_is_finished_by_the_next(after):
    whole, broken = FakeApi(), FakeApi()
    for api in (whole, broken):
        ask(api, configs=3)
    await settle(reconciler(whole))
    left = iter([True] * after)
    for _ in range(3):
        try:
            await look(reconciler(broken, fence=lambda: next(left, False)))
        except LeaseLost:
            break
    await settle(reconciler(broken))
    assert ends(broken) == ends(whole)


def ends(api):
    return [
        (one["kind"], one["metadata"]["name"], one.get("data"), one.get("status"))
        for one in api.shown()
        if one["kind"] != "Event"
    ]


async def test_a_service_that_is_going_is_left_to_the_garbage_collector():
    api = FakeApi()
    ask(api, configs=2)
    next(iter(api.stored.values())).body["metadata"]["deletionTimestamp"] = "now"
    api.writes.clear()
    assert await look(reconciler(api)) is None
    assert api.writes == []


async def test_a_child_of_a_deleted_service_of_the_same_name_is_waited_for():
    api = FakeApi()
    ask(api, configs=1)
    await settle(reconciler(api))
    del api.stored["LLMService", "n", "chat"]
    ask(api, configs=1)
    with pytest.raises(NotOurs, match="ConfigMap chat-0"):
        await look(reconciler(api))


async def test_a_child_that_is_going_is_waited_for():
    api = FakeApi()
    ask(api, configs=1)
    await settle(reconciler(api))
    api.stored["ConfigMap", "n", "chat-0"].body["metadata"]["deletionTimestamp"] = "now"
    with pytest.raises(Refused, match="is being deleted"):
        await look(reconciler(api))


async def test_an_optional_kind_is_read_only_where_it_is_served():
    api, read = FakeApi(), []
    monitor = Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors", optional=True)
    ask(api, configs=1)
    one = reconciler(api, StandIn(kinds=(CONFIG_MAP, *StandIn().kinds[1:], monitor)))

    async def listed(kind, namespace, selector=""):
        read.append(kind.kind)
        return Listing([], "9")

    api.list = listed
    await one.sight.whole(KEY, one.kinds)
    assert read == ["ConfigMap", "Service"]
    one.offered = Offered(frozenset({"PodMonitor"}))
    read.clear()
    await one.sight.whole(KEY, one.kinds)
    assert "PodMonitor" in read


class Fixed:
    kinds = (CONFIG_MAP,)
    watched = ()

    def __init__(self, *made):
        self.plans = list(made)

    def plan(self, document, children, offered, now_s):
        return self.plans.pop(0)


async def test_an_event_said_twice_of_one_version_is_there_once():
    api = FakeApi()
    ask(api)
    said = Plan((), (), {}, (Event("Warning", "Broken", "it is"),), None)
    one = reconciler(api, Fixed(said, said))
    (document,) = api.shown()
    await one._carry_out(KEY, document, [], said, fresh=False)
    await one._carry_out(KEY, document, [], said, fresh=False)
    (event,) = (await api.list(EVENT, "n")).items
    assert (event["type"], event["reason"], event["involvedObject"]["name"]) == ("Warning", "Broken", "chat")


async def test_a_plan_that_deletes_what_is_not_there_writes_nothing():
    api = FakeApi()
    ask(api)
    api.writes.clear()
    await look(reconciler(api, Fixed(Plan((), (Ref("v1", "ConfigMap", "gone"),), {}, (), 7.0))))
    assert [one for one in api.writes if one[0] == "delete"] == []


async def test_the_plans_own_time_is_kept():
    api = FakeApi()
    ask(api)
    one = reconciler(api, Fixed(*[Plan((), (), {}, (), 7.0)] * 2))
    assert await look(one) == 0.0, "after a write at once"
    assert await look(one) == 7.0


async def test_a_settled_service_is_looked_at_without_a_request():
    api = FakeApi()
    ask(api, configs=2)
    one = reconciler(api)
    for _ in range(3):
        await look(one)
    one.api = one.sight.api = None
    assert await one.reconcile(KEY) is None


async def test_a_child_that_went_unnoticed_is_made_again_by_the_next_look():
    api = FakeApi()
    ask(api, configs=2)
    one = reconciler(api)
    await settle(one)
    del api.stored["ConfigMap", "n", "chat-1"]
    await one.reconcile(KEY)
    assert ("ConfigMap", "n", "chat-1") not in api.stored, "nothing has told of it"
    await look(one)
    assert ("ConfigMap", "n", "chat-1") in api.stored


async def test_a_child_is_taken_away_on_a_fresh_look_only():
    """The watch tells of the smaller spec, and not that a person has raised it again."""
    api = FakeApi()
    ask(api, configs=3)
    one = reconciler(api)
    await settle(one)
    ask(api, configs=1)
    one.sight.offer(LLM_SERVICE, await api.get(LLM_SERVICE, "n", "chat"))
    ask(api, configs=3)
    api.writes.clear()
    await one.reconcile(KEY)
    assert [verb for verb, _, _ in api.writes if verb == "delete"] == []


async def test_a_child_is_changed_on_a_fresh_look_only():
    api = FakeApi()
    ask(api, configs=1, value="old")
    one = reconciler(api)
    await settle(one)
    ask(api, configs=1, value="new")
    await settle(reconciler(api))
    api.writes.clear()
    await one.reconcile(KEY)
    assert api.writes == [], "what it has is old, and agrees"
    stale = one.sight.snapshot.of(KEY)
    await look(one)
    other = reconciler(api)
    for body in stale:
        other.sight.offer(LLM_SERVICE if body["kind"] == "LLMService" else CONFIG_MAP, body)
    await other.reconcile(KEY)
    assert api.stored["ConfigMap", "n", "chat-0"].body["data"] == {"value": "new"}


async def test_a_child_that_the_snapshot_lacks_is_not_written_over():
    """A revision's record is frozen once: what is made from scratch must not replace the one that is there."""
    api = FakeApi()
    ask(api, configs=1, value="frozen")
    await settle(reconciler(api))
    ask(api, configs=1, value="other")
    one = reconciler(api, seen := Seeing())
    one.sight.offer(LLM_SERVICE, await api.get(LLM_SERVICE, "n", "chat"))
    await one.reconcile(KEY)
    assert seen.children == [0, 2], "planned again with what a fresh look showed, before any write"


class Seeing(StandIn):
    def __init__(self):
        super().__init__()
        object.__setattr__(self, "children", [])

    def plan(self, document, children, offered, now_s):
        self.children.append(len(children))
        return super().plan(document, children, offered, now_s)


async def test_a_child_of_a_kind_that_is_served_no_more_is_not_asked_for():
    api = FakeApi(kinds=frozenset({"Service"}))
    ask(api, configs=1)
    optional = Kind("v1", "Service", "services", optional=True)
    one = reconciler(api, StandIn(kinds=(CONFIG_MAP, optional), watched=()))
    one.offered = Offered(frozenset({"Service"}))
    await settle(one)
    assert len(one.sight.snapshot) == 3
    one.offered = Offered()
    await one.sight.everything([LLM_SERVICE, *one.kinds], ["n"])
    assert len(one.sight.snapshot) == 2


async def test_a_deletion_of_what_has_changed_since_is_refused_and_tried_again():
    api = FakeApi()
    ask(api, configs=2)
    one = reconciler(api)
    await settle(one)
    ask(api, configs=1)
    listed = api.list

    async def then_changed(kind, namespace, selector=""):
        found = await listed(kind, namespace, selector)
        if kind == CONFIG_MAP:
            meta = {"namespace": "n", "name": "chat-1"}
            api.apply_as("them", CONFIG_MAP, {"metadata": meta, "data": {"seen": str(api.now)}})
        return found

    api.list = then_changed
    with pytest.raises(Refused, match="409"):
        await look(one)
    assert ("ConfigMap", "n", "chat-1") in api.stored


async def test_a_service_that_is_gone_takes_its_figures_along():
    api = FakeApi()
    ask(api, configs=1)
    one = reconciler(api)
    await settle(one)
    labels = {"namespace": "n", "service": "chat", "pool": "configs", "state": "ready"}
    assert one.figures.registry.get_sample_value("penstock_operator_pool_replicas", labels) == 1
    del api.stored["LLMService", "n", "chat"]
    await look(one)
    assert one.figures.registry.get_sample_value("penstock_operator_pool_replicas", labels) is None


async def test_children_are_found_by_the_services_label():
    api = FakeApi()
    ask(api, configs=1)
    await settle(reconciler(api))
    assert api.stored["ConfigMap", "n", "chat-0"].body["metadata"]["labels"] == {SERVICE_LABEL: "chat"}
