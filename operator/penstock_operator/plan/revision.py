"""Revisions: what engines need from a spec, its hash, and what is frozen when a revision is made.

Promise: the hash depends on the fields of the spec that engines need and on nothing else: not on this operator's default image,
nor on how children are rendered. So an operator of another version finds its revisions again and rolls no fleet.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock_operator.api.llmservice import Spec

_LENGTH = 8
_POOL_FIELDS = {"parallelism", "resources", "node_selector", "tolerations"}


def engine_inputs(spec: Spec) -> dict[str, Any]:
    """Fields at their default are left out, so that a field that a later version adds changes no hash."""

    def dump(model: Any, **choice: Any) -> Any:
        return model.model_dump(mode="json", by_alias=True, exclude_defaults=True, **choice)

    pools = {name: dump(pool, include=_POOL_FIELDS) for name, pool in spec.topology.pools.items()}
    return {
        "model": {**dump(spec.model), "name": spec.model.served_name},
        "engine": dump(spec.engine),
        "pools": dict(sorted(pools.items())),
        "drainTimeout": spec.rollout.drain_timeout,
    }


def revision_hash(spec: Spec) -> str:
    text = json.dumps(engine_inputs(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


@dataclass(frozen=True, slots=True)
class Record:
    """What a ControllerRevision keeps: everything of a revision but its sizes.

    `ray_service` is the RayService's spec without serveConfigV2; `serve` the content of serveConfigV2, an application per pool;
    `storage` the spec of the head's volume claim, or None.
    """

    inputs: Mapping[str, Any]
    ray_service: Mapping[str, Any]
    serve: Mapping[str, Any]
    storage: Mapping[str, Any] | None

    def data(self) -> dict[str, Any]:
        """As it is read back: a new revision is rendered as it will be ever after."""
        made: dict[str, Any] = _as_kept(
            {
                "inputs": self.inputs,
                "rayService": self.ray_service,
                "serve": self.serve,
                **({"storage": self.storage} if self.storage is not None else {}),
            }
        )
        return made

    @staticmethod
    def of(data: Mapping[str, Any]) -> "Record":
        return Record(data["inputs"], data["rayService"], data["serve"], data.get("storage"))

    @property
    def pools(self) -> tuple[str, ...]:
        return tuple(one["name"] for one in self.serve["applications"])

    @property
    def durable(self) -> bool:
        return self.storage is not None


def _as_kept(value: Any) -> Any:
    """The API server keeps 10.0 as 10, which is another text where a config is one."""
    if isinstance(value, Mapping):
        return {key: _as_kept(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_kept(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
