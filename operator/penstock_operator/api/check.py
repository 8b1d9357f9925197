"""What is wrong with an LLMService, by field.

Promise: the one check, for `penstock validate`, `penstock up` and every reconcile; the CRD refuses the same, as far as its schema
and CEL can express it. No fault means that the models accept the object.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from penstock_operator.api.llmservice import API_VERSION, KIND, LLMService


@dataclass(frozen=True, slots=True)
class Fault:
    """`field` is a path such as `spec.topology.prefill.replicas`; `message` says what would be accepted."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def check(document: Any, old: LLMService | None = None) -> list[Fault]:
    """`document` is the object as YAML or the API server has it; `old` is what it is to replace, where there is one."""
    return judge(document, old)[1]


def judge(document: Any, old: LLMService | None = None) -> tuple[LLMService | None, list[Fault]]:
    """The service where it has no fault, and the faults."""
    if not isinstance(document, dict):
        return None, [Fault("the manifest", f"is no mapping; it begins with apiVersion: {API_VERSION}")]
    faults = [
        Fault(key, f"{document.get(key)!r} is not {wanted}")
        for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND))
        if document.get(key) != wanted
    ]
    if faults:
        return None, faults
    try:
        service = LLMService.model_validate(document)
    except ValidationError as error:
        return None, [_fault(one) for one in error.errors(include_url=False)]
    faults = _transition(service, old) if old is not None else []
    return (None if faults else service), faults


def _transition(new: LLMService, old: LLMService) -> list[Fault]:
    was, asked = old.spec.model.served_name, new.spec.model.served_name
    if was == asked:
        return []
    told = (
        f"the served name may not change from {was!r} to {asked!r}, clients ask for it; keep it here, or make another LLMService"
    )
    return [Fault("spec.model.name", told)]


def _fault(error: ErrorDetails) -> Fault:
    """pydantic's own text has several lines and a link."""
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "no such field"
    elif error["type"] == "missing":
        message = "is required"
    elif error["type"] != "value_error":
        message = f"{error['input']!r}: {message[0].lower()}{message[1:]}"
    return Fault(_path(error["loc"]), " ".join(message.split()))


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".") or "the manifest"
