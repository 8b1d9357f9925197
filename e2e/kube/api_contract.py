"""What the operator relies on in an API server: one suite for the fake and for the real one.

A subclass gives the fixtures `api`, `namespace` and `foreign` (an apply as another field manager, by force).
"""

from typing import Any

import pytest

from penstock_operator.plan.names import FIELD_MANAGER, SERVICE_LABEL
from penstock_operator.shell import drift
from penstock_operator.shell.kinds import LEASE
from penstock_operator.shell.ports import Kind, Refused

CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")


def config(namespace: str, name: str, **data: str) -> dict[str, Any]:
    meta = {"namespace": namespace, "name": name, "labels": {SERVICE_LABEL: "chat"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


class ApiContract:
    async def test_what_is_not_there_is_none(self, api, namespace):
        assert await api.get(CONFIG_MAP, namespace, "nothing") is None

    async def test_an_apply_creates_and_is_read_back(self, api, namespace):
        made = await api.apply(CONFIG_MAP, config(namespace, "a", x="1"))
        assert made["data"] == {"x": "1"}
        assert await api.get(CONFIG_MAP, namespace, "a") == made

    async def test_an_apply_of_the_same_changes_no_version(self, api, namespace):
        first = await api.apply(CONFIG_MAP, config(namespace, "a", x="1"))
        second = await api.apply(CONFIG_MAP, config(namespace, "a", x="1"))
        assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]

    async def test_a_field_no_longer_applied_is_removed(self, api, namespace):
        await api.apply(CONFIG_MAP, config(namespace, "a", x="1", y="2"))
        assert (await api.apply(CONFIG_MAP, config(namespace, "a", x="1")))["data"] == {"x": "1"}

    async def test_another_managers_field_stays_and_ours_is_taken_back(self, api, namespace, foreign):
        await api.apply(CONFIG_MAP, config(namespace, "a", x="1"))
        await foreign(config(namespace, "a", x="theirs", z="theirs"))
        assert (await api.apply(CONFIG_MAP, config(namespace, "a", x="1")))["data"] == {"x": "1", "z": "theirs"}

    async def test_what_is_settled_is_known_and_what_is_not_is_not(self, api, namespace, foreign):
        body = config(namespace, "a", x="1")
        live = await api.apply(CONFIG_MAP, body)
        assert drift.settled(body, live)
        assert not drift.settled(config(namespace, "a", x="2"), live)
        assert not drift.settled(config(namespace, "a", x="1", y="2"), live)
        assert not drift.settled({**body, "data": {}}, live)
        await foreign(config(namespace, "a", z="theirs"))
        assert drift.settled(body, await api.get(CONFIG_MAP, namespace, "a"))
        await foreign(config(namespace, "a", x="theirs", z="theirs"))
        assert not drift.settled(body, await api.get(CONFIG_MAP, namespace, "a"))

    async def test_the_record_of_owners_is_ours_by_name(self, api, namespace):
        live = await api.apply(CONFIG_MAP, config(namespace, "a", x="1"))
        assert [(one["manager"], one["operation"]) for one in live["metadata"]["managedFields"]] == [(FIELD_MANAGER, "Apply")]
        assert drift.owned(live)["f:data"] == {"f:x": {}}

    async def test_a_list_is_by_label_and_says_what_its_items_are(self, api, namespace):
        await api.apply(CONFIG_MAP, config(namespace, "b", x="1"))
        await api.apply(CONFIG_MAP, config(namespace, "a", x="1"))
        bare = config(namespace, "c", x="1")
        del bare["metadata"]["labels"]
        await api.apply(CONFIG_MAP, bare)
        listed = await api.list(CONFIG_MAP, namespace, f"{SERVICE_LABEL}=chat")
        assert [(one["kind"], one["apiVersion"], one["metadata"]["name"]) for one in listed.items] == [
            ("ConfigMap", "v1", "a"),
            ("ConfigMap", "v1", "b"),
        ]
        assert (await api.list(CONFIG_MAP, namespace, f"{SERVICE_LABEL}=other")).items == []
        assert {one["metadata"]["name"] for one in (await api.list(CONFIG_MAP, namespace)).items} >= {"a", "b", "c"}

    async def test_a_lists_version_is_not_below_that_of_what_it_holds(self, api, namespace):
        first = await api.list(CONFIG_MAP, namespace)
        made = await api.apply(CONFIG_MAP, config(namespace, "a", x="1"))
        listed = await api.list(CONFIG_MAP, namespace)
        assert int(first.version) < int(made["metadata"]["resourceVersion"]) <= int(listed.version)

    async def test_bare_pages_hold_the_metadata_of_a_list(self, api, namespace):
        for name in ("a", "b", "c"):
            made = await api.apply(CONFIG_MAP, config(namespace, name, x="1"))
        pages = [page async for page in api.pages(CONFIG_MAP, namespace, SERVICE_LABEL, bare=True)]
        items = [one for page in pages for one in page.items]
        assert [one["metadata"]["name"] for one in items] == ["a", "b", "c"] and not any("data" in one for one in items)
        assert items[-1]["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
        assert items[-1]["metadata"]["labels"] == {SERVICE_LABEL: "chat"}
        assert len({page.version for page in pages}) == 1

    async def test_a_delete_needs_the_uid_and_the_version_of_what_is_there(self, api, namespace):
        old = (await api.apply(CONFIG_MAP, config(namespace, "a", x="1")))["metadata"]
        new = (await api.apply(CONFIG_MAP, config(namespace, "a", x="2")))["metadata"]
        for uid, version in (("another", new["resourceVersion"]), (old["uid"], old["resourceVersion"])):
            with pytest.raises(Refused) as refused:
                await _delete(api, namespace, uid, version)
            assert refused.value.status == 409
        assert await _delete(api, namespace, new["uid"], new["resourceVersion"])
        assert not await _delete(api, namespace, new["uid"], new["resourceVersion"])

    async def test_of_two_who_create_one_is_refused(self, api, namespace):
        await api.create(LEASE, _lease(namespace))
        with pytest.raises(Refused) as refused:
            await api.create(LEASE, _lease(namespace))
        assert (refused.value.status, refused.value.reason) == (409, "AlreadyExists")

    async def test_of_two_who_replace_one_version_one_is_refused(self, api, namespace):
        seen = await api.create(LEASE, _lease(namespace))
        await api.replace(LEASE, _at(seen, "a"))
        with pytest.raises(Refused) as refused:
            await api.replace(LEASE, _at(seen, "b"))
        assert refused.value.status == 409
        held = await api.get(LEASE, namespace, "l")
        assert held["spec"]["holderIdentity"] == "a"

    async def test_a_status_of_nothing_is_refused(self, api, namespace):
        kind = Kind("apps/v1", "Deployment", "deployments")
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": namespace, "name": "n"}, "status": {}}
        with pytest.raises(Refused) as refused:
            await api.apply(kind, body, subresource="status")
        assert refused.value.status == 404

    async def test_an_unknown_group_serves_nothing(self, api):
        assert await api.served("nothing.example/v1") == frozenset()


async def _delete(api: Any, namespace: str, uid: str, version: str) -> bool:
    gone: bool = await api.delete(CONFIG_MAP, namespace, "a", uid=uid, version=version, propagation="Background")
    return gone


def _lease(namespace: str) -> dict[str, Any]:
    meta = {"namespace": namespace, "name": "l"}
    return {"apiVersion": LEASE.api_version, "kind": "Lease", "metadata": meta, "spec": {"holderIdentity": "x"}}


def _at(seen: Any, holder: str) -> dict[str, Any]:
    meta = {"namespace": seen["metadata"]["namespace"], "name": "l", "resourceVersion": seen["metadata"]["resourceVersion"]}
    return {**_lease(meta["namespace"]), "metadata": meta, "spec": {"holderIdentity": holder}}
