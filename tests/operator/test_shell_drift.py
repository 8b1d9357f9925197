"""Drift on owner records as the server writes them: a write is saved only where it would change nothing."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kube.fake_api import FakeApi

from penstock_operator.plan.names import FIELD_MANAGER
from penstock_operator.shell import drift
from penstock_operator.shell.ports import Kind

KIND = Kind("example/v1", "Thing", "things")


def live(spec, fields, subresource="", manager=FIELD_MANAGER, operation="Apply"):
    entry = {"manager": manager, "operation": operation, "fieldsV1": fields}
    if subresource:
        entry["subresource"] = subresource
    return {"metadata": {"managedFields": [entry]}, **spec}


PORTS = {"f:spec": {"f:ports": {'k:{"port":1,"protocol":"TCP"}': {".": {}, "f:port": {}, "f:name": {}}}}}


def test_a_member_is_found_by_its_keys_with_a_default_left_out():
    body = {"metadata": {}, "spec": {"ports": [{"port": 1, "name": "a"}]}}
    kept = {"spec": {"ports": [{"port": 2, "protocol": "TCP"}, {"port": 1, "protocol": "TCP", "name": "a"}]}}
    assert drift.settled(body, live(kept, PORTS))
    renamed = {"spec": {"ports": [{"port": 1, "protocol": "TCP", "name": "theirs"}]}}
    assert not drift.settled(body, live(renamed, PORTS))
    assert drift.digest(body, live(kept, PORTS)) != drift.digest(body, live(renamed, PORTS))


def test_a_member_more_or_fewer_is_not_settled():
    kept = {"spec": {"ports": [{"port": 1, "protocol": "TCP", "name": "a"}]}}
    assert not drift.settled({"spec": {"ports": []}}, live(kept, PORTS))
    assert not drift.settled({"spec": {"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "b"}]}}, live(kept, PORTS))


def test_what_we_own_below_an_empty_map_is_not_settled():
    fields = {"f:spec": {"f:z": {"f:a": {}}}}
    assert not drift.settled({"spec": {"z": {}}}, live({"spec": {"z": {}}}, fields))
    assert not drift.settled({"spec": {"z": 1}}, live({"spec": {"z": 1}}, fields))


def test_a_set_is_settled_value_by_value():
    fields = {"f:metadata": {"f:finalizers": {'v:"a"': {}}}}
    body = {"metadata": {"finalizers": ["a"]}}
    kept = live({}, fields)
    kept["metadata"]["finalizers"] = ["theirs", "a"]
    assert drift.settled(body, kept)
    kept["metadata"]["finalizers"] = ["theirs"]
    assert not drift.settled(body, kept)


def test_only_our_own_record_of_the_same_subresource_counts():
    body, spec = {"spec": {"a": 1}}, {"spec": {"a": 1}}
    fields = {"f:spec": {"f:a": {}}}
    assert drift.settled(body, live(spec, fields))
    assert not drift.settled(body, live(spec, fields, manager="kubectl"))
    assert not drift.settled(body, live(spec, fields, operation="Update"))
    assert not drift.settled(body, live(spec, fields, subresource="status"))
    assert drift.settled({"status": {}}, live({"status": {}}, {"f:status": {}}, subresource="status"), "status")


leaf = st.one_of(st.integers(0, 2), st.text("ab", max_size=1), st.booleans(), st.lists(st.integers(0, 1), max_size=2))
tree = st.recursive(leaf, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=6)
bodies = st.dictionaries(st.sampled_from("xyz"), tree, min_size=1, max_size=3)


def thing(spec):
    return {"apiVersion": "example/v1", "kind": "Thing", "metadata": {"namespace": "n", "name": "t"}, "spec": spec}


def as_read(api):
    (only,) = api.shown()
    return only


def has_empty_map(body):
    return isinstance(body, dict) and (not body or any(has_empty_map(value) for value in body.values()))


@pytest.mark.slow
@settings(deadline=None)
@given(bodies, bodies, st.one_of(st.none(), bodies))
def test_settled_means_that_an_apply_changes_nothing(ours, wanted, theirs):
    """For any body applied before, any foreign apply since, and any body wanted now."""
    api = FakeApi()
    api.apply_as(FIELD_MANAGER, KIND, thing(ours))
    if theirs is not None:
        try:
            api.apply_as("foreign", KIND, thing(theirs))
        except (AttributeError, TypeError):
            return  # one made a leaf of what the other made a tree; a schema rules that out
    before = copy.deepcopy(api.stored)
    saved = drift.settled(thing(wanted), as_read(api))
    try:
        api.apply_as(FIELD_MANAGER, KIND, thing(wanted))
    except (AttributeError, TypeError):
        return
    if saved:
        (now,), (then,) = api.stored.values(), before.values()
        assert now.body["spec"] == then.body["spec"]
        assert now.owners == then.owners or has_empty_map(ours)
    assert drift.settled(thing(wanted), as_read(api)), "an apply settles"
