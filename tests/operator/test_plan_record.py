"""A revision's record as the API server keeps it."""

import json
from typing import Any

import crd_cases
from plan_world import World


def whole_floats(node: Any) -> list[float]:
    if isinstance(node, dict):
        return [found for one in node.values() for found in whole_floats(one)]
    if isinstance(node, list):
        return [found for one in node for found in whole_floats(one)]
    return [node] if isinstance(node, float) and node.is_integer() else []


def test_a_new_record_and_its_config_hold_no_number_that_is_kept_in_another_form() -> None:
    """10.0 comes back as 10: the config's text would change with the second reconcile, and KubeRay would send it anew."""
    plan = World(crd_cases.manifest()).plan()
    (record,) = [one for one in plan.objects if one["kind"] == "ControllerRevision"]
    (ray,) = [one for one in plan.objects if one["kind"] == "RayService"]
    assert record["data"]["inputs"]["model"] and whole_floats(record["data"]) == []
    assert whole_floats(json.loads(ray["spec"]["serveConfigV2"])) == []
