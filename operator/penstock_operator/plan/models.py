"""How a worker's pod comes to its model: the container that fetches it before the engine, and the credentials.

Promise: only sources that are fetched get either; what they need of a Secret is named here once, with its keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock_operator.api import Spec
from penstock_operator.plan import pods
from penstock_operator.plan.settings import OperatorSettings

CONTAINER = "model"
_MODULE = "penstock_workers.model"
# No limit: what a fetcher has written counts as its memory until the disk has it.
_RESOURCES = {"requests": {"cpu": "250m", "memory": "1Gi"}}


@dataclass(frozen=True, slots=True)
class _Key:
    """A key of the Secret and the variable that a fetcher reads it from."""

    name: str
    variable: str
    optional: bool = False


KEYS: Mapping[str, tuple[_Key, ...]] = {
    "hf": (_Key("token", "HF_TOKEN"),),
    "s3": (
        _Key("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
        _Key("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"),
        *(_Key(name, name, optional=True) for name in ("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL")),
    ),
}


def scheme(source: str) -> str:
    return source.partition("://")[0]


def secret_keys(source: str) -> tuple[str, ...]:
    """What a Secret must hold for a source."""
    return tuple(key.name for key in KEYS.get(scheme(source), ()) if not key.optional)


def credentials(spec: Spec) -> list[dict[str, Any]]:
    """Variables of the fetcher and of the engine's container, which fetches again what a volume has lost. What engine.env gives
    goes before: two variables of one name would be refused by the API server."""
    if spec.model.secret_ref is None:
        return []
    name = spec.model.secret_ref.name
    return [
        {
            "name": key.variable,
            "valueFrom": {"secretKeyRef": {"name": name, "key": key.name, **({"optional": True} if key.optional else {})}},
        }
        for key in KEYS.get(scheme(spec.model.source), ())
        if key.variable not in {one.name for one in spec.engine.env}
    ]


def fetchers(
    spec: Spec, image: str, settings: OperatorSettings, environment: list[dict[str, Any]], mounts: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The init containers of a worker's pod; `environment` and `mounts` are the engine's."""
    if scheme(spec.model.source) not in KEYS:
        return []
    secret = ["--secret", spec.model.secret_ref.name] if spec.model.secret_ref is not None else []
    needed = {"cache", "tmp", "home-penstock"}
    return [
        pods.container(
            CONTAINER,
            image,
            settings,
            command=["python", "-m", _MODULE, spec.model.source, "--cache", pods.CACHE, *secret],
            env=environment,
            resources=_RESOURCES,
            volumeMounts=[one for one in mounts if one["name"] in needed],
        )
    ]
