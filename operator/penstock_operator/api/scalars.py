"""Scalars of Kubernetes manifests: durations and quantities as numbers with a known unit.

Promise: a value is read exactly or refused with what would be accepted; YAML 1.1's reading of `on`
and `off` as booleans is undone where a field offers those words.
"""

import math
import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

_DURATION_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITY = {
    "": 1, "m": 0.001, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_DURATION_PATTERN = r"([0-9]+(\.[0-9]+)?(ms|s|m|h))+"
_QUANTITY_PATTERN = r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?"
# Longer texts are refused before they are read.
_SCALAR_MAX = 32


def duration_s(value: Any) -> float:
    """'500ms', '60s', '30m', '1h30m' to seconds."""
    text = value if isinstance(value, str) and len(value) <= _SCALAR_MAX else ""
    if not re.fullmatch(_DURATION_PATTERN, text):
        raise ValueError(f"{value!r} is not a duration such as 500ms, 60s, 30m or 1h30m")
    return sum(float(n) * _DURATION_S[unit] for n, _, unit in re.findall(r"(\d+(\.\d+)?)(ms|s|m|h)", text))


def duration_text(seconds: float) -> str:
    """The shortest single-unit text of the same duration."""
    for unit in ("h", "m", "s"):
        if seconds and seconds % _DURATION_S[unit] == 0:
            return f"{int(seconds / _DURATION_S[unit])}{unit}"
    return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms" if seconds else "0s"


def quantity(value: Any) -> float:
    """'8Gi', '500m', '2', 2 to a plain number (bytes, cores)."""
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    match = re.fullmatch(_QUANTITY_PATTERN, text)
    if not match or len(text) > _SCALAR_MAX:
        raise ValueError(f"{value!r} is not a quantity such as 8Gi, 500m or 2")
    return float(match[1]) * _QUANTITY[match[2] or ""]


def canonical(text: str) -> str:
    """A quantity as the API server gives it back from a typed field: '0.5' as '500m', '1024Mi' as '1Gi', '1000' as '1k'.

    Source: Quantity.CanonicalizeBytes in k8s.io/apimachinery/pkg/api/resource.
    """
    match = re.fullmatch(_QUANTITY_PATTERN, text)
    assert match, text
    number, unit = Decimal(match[1]), match[2] or ""
    amount = number * Decimal(str(_QUANTITY[unit]))
    if unit.endswith("i") and amount >= 1024:
        return _scaled(math.ceil(amount), 1024, ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))
    return _scaled(math.ceil(amount * 10**9), 1000, ("n", "u", "m", "", "k", "M", "G", "T", "P", "E"))


def _scaled(whole: int, step: int, units: tuple[str, ...]) -> str:
    """The largest unit of which it is a whole number."""
    place = 0
    while whole and whole % step == 0 and place + 1 < len(units):
        whole, place = whole // step, place + 1
    return f"{whole}{units[place]}" if whole else "0"


def _quantity_text(value: Any) -> str:
    quantity(value)
    return str(value)


def _positive_s(value: Any) -> float:
    seconds = duration_s(value)
    if seconds <= 0:
        raise ValueError(f"{value!r} must be above 0")
    return seconds


def word(value: Any) -> Any:
    """`on` and `off` that YAML 1.1 read as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Duration = Annotated[
    float,
    BeforeValidator(_positive_s),
    PlainSerializer(duration_text, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": _SCALAR_MAX,
            "pattern": f"^{_DURATION_PATTERN}$",
            "x-kubernetes-validations": [{"rule": "duration(self) > duration('0s')", "message": "must be above 0"}],
        }
    ),
]
# Kept as written: what Kubernetes gets is what the author wrote.
Quantity = Annotated[
    str,
    BeforeValidator(_quantity_text),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": _SCALAR_MAX,
            "pattern": f"^{_QUANTITY_PATTERN.replace('?:', '')}$",
            "x-kubernetes-int-or-string": True,
        }
    ),
]
# A DNS label, as Kubernetes names things.
Name = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
LabelValue = Annotated[str, Field(max_length=63)]
# requests | limits -> resource -> quantity.
Resources = dict[str, Annotated[dict[str, Quantity], Field(max_length=32)]]
