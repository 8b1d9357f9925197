"""Rules that several parts of the manifest share.

Promise: each raises ValueError with the value and what would be accepted, and changes nothing.
"""

import re

NAME_MAX = 36
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
# What Penstock gives engines itself, by the degree of parallelism.
GPU_RESOURCE = "nvidia.com/gpu"


def source(value: str, schemes: tuple[str, ...]) -> str:
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in schemes or not rest.strip("/") or re.search(r"\s", value):
        raise ValueError(f"{value!r} is none of {', '.join(f'{one}://...' for one in schemes)}")
    if scheme == "penstock" and rest != "tiny":
        raise ValueError(f"{value!r}: the one built-in model is penstock://tiny")
    return value


def resources(value: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    for key in value.keys() - {"requests", "limits"}:
        raise ValueError(f"{key!r} is neither requests nor limits")
    for part in value.values():
        if GPU_RESOURCE in part:
            raise ValueError(f"{GPU_RESOURCE} follows from topology.<pool>.parallelism; remove it")
    return value


def unique(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what} has the name {name!r} twice")
