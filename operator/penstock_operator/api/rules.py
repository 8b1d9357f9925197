"""Rules that several parts of the manifest share.

Promise: each raises ValueError with the value and what would be accepted, and changes nothing.
"""


def source(value: str, schemes: tuple[str, ...]) -> str:
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in schemes or not rest.strip("/"):
        raise ValueError(f"{value!r} is none of {', '.join(f'{one}://...' for one in schemes)}")
    if scheme == "penstock" and rest != "tiny":
        raise ValueError(f"{value!r}: the one built-in model is penstock://tiny")
    return value


def resources(value: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    for key in value.keys() - {"requests", "limits"}:
        raise ValueError(f"{key!r} is neither requests nor limits")
    return value


def unique(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what} has the name {name!r} twice")
