"""The CustomResourceDefinition of LLMService, made from the models.

Promise: a structural schema with every field's description, bound and default, the CEL rules of `cel`, list types for
server-side apply, and nothing that the models do not say. `deploy/helm/penstock/crds` holds its text; a test compares the two.
"""

from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from penstock_operator.api.cel import LIST_KEYS, RULES
from penstock_operator.api.llmservice import GROUP, KIND, VERSION, LLMService
from penstock_operator.api.scalars import duration_text
from penstock_operator.api.status import Status

PLURAL = "llmservices"
NAME = f"{PLURAL}.{GROUP}"
HEADER = "# Generated from penstock_operator.api by `make gen`; do not edit.\n"

_COLUMNS = (
    ("Model", "string", ".status.model", "Served name."),
    ("Mode", "string", ".spec.topology.mode", "auto, colocated or disaggregated."),
    ("Prefill", "string", ".status.columns.prefill", "Ready and desired workers of the pool prefill."),
    ("Decode", "string", ".status.columns.decode", "Ready and desired workers of the pool decode."),
    ("Phase", "string", ".status.phase", "For people; programs read conditions."),
    ("SLO", "string", ".status.columns.slo", "Least attainment of all classes."),
    ("Age", "date", ".metadata.creationTimestamp", "Time since creation."),
)
_WIDE_COLUMNS = (
    ("Workers", "string", ".status.columns.workers", "Ready and desired workers of the pool workers."),
    ("Revision", "string", ".status.revision.current", "Revision that serves."),
)
# Nothing to tell apart from absence, so that stored objects do not fill up with it.
_NO_DEFAULT: tuple[Any, ...] = (None, "", [], {})
# Keys of JSON schema that a structural schema has too.
_KEPT = (
    "type", "description", "enum", "pattern", "format", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems",
    "maxProperties", "required", "x-kubernetes-validations", "x-kubernetes-int-or-string",
)  # fmt: skip


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as an object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND, "listKind": f"{KIND}List", "plural": PLURAL, "singular": KIND.lower(), "shortNames": ["llm"],
                "categories": ["penstock"],
            },
            "scope": "Namespaced",
            "versions": [_version()],
        },
    }  # fmt: skip


def text() -> str:
    """The CustomResourceDefinition as YAML."""
    return HEADER + yaml.dump(definition(), Dumper=_Plain, sort_keys=False, width=130)


class _Plain(yaml.SafeDumper):
    """Without anchors: the same part of a schema is written out wherever it stands."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _version() -> dict[str, Any]:
    columns = [_column(one, 0) for one in _COLUMNS] + [_column(one, 1) for one in _WIDE_COLUMNS]
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": _root()},
    }


def _column(column: tuple[str, str, str, str], priority: int) -> dict[str, Any]:
    name, kind, path, description = column
    wide = {"priority": priority} if priority else {}
    return {"name": name, "type": kind, "jsonPath": path, "description": description, **wide}


def _root() -> dict[str, Any]:
    models: list[tuple[type[BaseModel], Any]] = [(LLMService, "validation"), (Status, "validation")]
    _, schema = models_json_schema(models, by_alias=True)
    build, reported = _Builder(schema["$defs"]), _Builder(schema["$defs"], defaults=False)
    root = build.model("LLMService")
    properties = root["properties"]
    properties["apiVersion"] = {"type": "string", "description": "serving.penstock.dev/v1alpha1"}
    properties["kind"] = {"type": "string", "description": KIND}
    properties["metadata"] = {"type": "object"}
    properties["status"] = reported.model("Status")
    root["required"] = ["spec"]
    root["description"] = "A large language model served with service-level objectives."
    return root


def _default(made: dict[str, Any], default: Any) -> Any:
    """Rules are run on a default as it stands, without the defaults below it: those of an object are spelled out."""
    if isinstance(default, dict):
        return {key: part["default"] for key, part in made["properties"].items() if "default" in part}
    if made.get("type") == "string" and isinstance(default, float):
        return duration_text(default)
    return default


class _Builder:
    """Models to structural schemas, by the names of their definitions; a status is the operator's own words, without defaults."""

    def __init__(self, definitions: dict[str, Any], defaults: bool = True) -> None:
        self._definitions, self._defaults = definitions, defaults

    def model(self, name: str) -> dict[str, Any]:
        schema = self._definitions[name]
        made = self._plain(schema)
        fields = schema.get("properties", {})
        made["properties"] = {key: self._field(name, key, value) for key, value in fields.items()}
        self._add_rules(made, (name, None))
        return made

    def _field(self, model: str, key: str, schema: dict[str, Any]) -> dict[str, Any]:
        made = self._value(schema)
        if "description" in schema:
            made["description"] = schema["description"]
        default = schema.get("default")
        if self._defaults and default not in _NO_DEFAULT:
            made["default"] = _default(made, default)
        if made.get("type") == "array":
            by = LIST_KEYS.get((model, key))
            made |= (
                {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [by]}
                if by
                else {"x-kubernetes-list-type": "atomic"}
            )
        self._add_rules(made, (model, key))
        return made

    def _value(self, schema: dict[str, Any]) -> dict[str, Any]:
        options = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
        if len(options) == 1:
            return self._value(options[0])
        if "$ref" in schema:
            return self.model(schema["$ref"].rpartition("/")[2])
        made = self._plain(schema)
        if options:
            made["anyOf"] = options
        if schema.get("type") == "array":
            made["items"] = self._value(schema["items"])
        elif schema.get("type") == "object":
            self._map(made, schema)
        return made

    def _map(self, made: dict[str, Any], schema: dict[str, Any]) -> None:
        values = schema.get("additionalProperties")
        if isinstance(values, dict) and values:
            made["additionalProperties"] = self._value(values)
        else:
            made["x-kubernetes-preserve-unknown-fields"] = True

    def _plain(self, schema: dict[str, Any]) -> dict[str, Any]:
        made = {key: schema[key] for key in _KEPT if key in schema}
        if "description" in made:
            made["description"] = " ".join(made["description"].split())
        for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if exclusive in schema:
                made |= {bound: schema[exclusive], exclusive: True}
        if set(made.get("enum", ())) & {"on", "off"}:
            self._accept_booleans(made)
        return made

    def _accept_booleans(self, made: dict[str, Any]) -> None:
        """YAML 1.1, which kubectl reads, takes `on` and `off` for booleans; the models turn them back."""
        del made["type"]
        made["enum"] = [*made["enum"], *([True] if "on" in made["enum"] else []), False]
        made["x-kubernetes-preserve-unknown-fields"] = True

    def _add_rules(self, made: dict[str, Any], key: tuple[str, str | None]) -> None:
        rules = [{"rule": one.cel, "message": one.message} for one in RULES.get(key, ())]
        if rules:
            made["x-kubernetes-validations"] = [*made.get("x-kubernetes-validations", ()), *rules]
