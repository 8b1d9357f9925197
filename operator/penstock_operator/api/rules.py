"""Rules that several parts of the manifest share.

Promise: each raises ValueError with the value and what would be accepted, and changes nothing.
"""

import re

NAME_MAX = 36
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
# What Penstock gives engines itself, by the degree of parallelism.
GPU_RESOURCE = "nvidia.com/gpu"


# Scheme -> what a source looks like, and its pattern for Python and for CEL's RE2 alike.
SOURCES = {
    "hf": ("hf://ORG/NAME[@REVISION]", r"hf://[^/@\s]+/[^/@\s]+/*(@[^@\s]+)?"),
    "pvc": ("pvc://CLAIM[/PATH]", r"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^\s]*)?"),
    "s3": ("s3://BUCKET[/PATH]", r"s3://[A-Za-z0-9][-A-Za-z0-9._]*(/[^\s]*)?"),
    "file": ("file:///PATH", r"file:///[^\s]*[^/\s][^\s]*"),
    "penstock": ("penstock://tiny", r"penstock://tiny"),
}
# Of a pod's own folders, which are none of the claim's.
_UP = re.compile(r"/\.\.(/|$)")


def source(value: str, schemes: tuple[str, ...]) -> str:
    if not any(re.fullmatch(SOURCES[one][1], value) for one in schemes) or _UP.search(value):
        raise ValueError(f"{value!r} is none of {accepted(schemes)}")
    return value


def accepted(schemes: tuple[str, ...]) -> str:
    """What a message offers."""
    return ", ".join(SOURCES[one][0] for one in schemes)


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
