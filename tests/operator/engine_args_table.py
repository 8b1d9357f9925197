"""The table of vLLM's engine arguments that `engine.args` is checked against.

`python tests/operator/engine_args_table.py --write` generates it from the installed vLLM.
"""

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parents[2] / "operator/penstock_operator/api/engine_args.json"
_NAMES = {bool: "bool", int: "int", float: "float", str: "str"}


def describe(annotation: Any) -> dict[str, Any]:
    """Kind ("any" where it is none of YAML's own), choices, the keys of a config, optional."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        some = [part for part in parts if part is not type(None)]
        found = describe(some[0]) if len(some) == 1 else _union([describe(part) for part in some])
        return {**found, "optional": True} if len(some) < len(parts) else found
    if origin is typing.Literal:
        return {"kind": "choice", "choices": list(parts)}
    if origin in (list, tuple, set):
        return {"kind": "list"}
    if origin is dict or annotation is dict:
        return {"kind": "dict"}
    if dataclasses.is_dataclass(annotation):
        return {"kind": "config", "keys": sorted(one.name for one in dataclasses.fields(annotation) if one.init)}
    return {"kind": _NAMES.get(annotation, "any")}


def _union(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of plain kinds; with a str among them every choice is one."""
    kinds = {"str" if part["kind"] == "choice" else part["kind"] for part in parts}
    plain = kinds <= {*_NAMES.values(), "list", "dict"}
    return {"kind": "/".join(sorted(kinds))} if plain else {"kind": "any"}


def generate() -> dict[str, Any]:
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs

    fields = sorted(dataclasses.fields(AsyncEngineArgs), key=lambda field: field.name)
    args = {field.name: describe(field.type) for field in fields if not field.name.startswith("_")}
    return {"vllm": vllm.__version__.split("+")[0], "args": args}


def text(table: dict[str, Any]) -> str:
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(known)}" for name, known in table["args"].items())
    return f'{{\n  "vllm": {json.dumps(table["vllm"])},\n  "args": {{\n{lines}\n  }}\n}}\n'


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: engine_args_table.py --write")
    TABLE.write_text(text(generate()))
