"""Checks what bounds an answer's form: JSON Schema, regular expression, choice, grammar.

Promise: bounded work whatever comes in, and a message that names the place. What passes here may still be
beyond the engine's grammar compiler; the engine's refusal then names the same field.
"""

import asyncio
import json
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.validators import validator_for

from penstock_proto.v1.common_pb2 import Sampling

from .faults import CallerFault, Expired

MAX_SCHEMA_CHARS = 65_536
LARGE_SCHEMA_CHARS = 1_024  # about 10 ms to check: longer ones would hold up everybody's tokens
MAX_SCHEMA_DEPTH = 64  # vLLM's own bound
MAX_REGEX_CHARS = 8_192
MAX_GRAMMAR_CHARS = 65_536
MAX_CHOICES = 1_024
MAX_CHOICE_CHARS = 65_536  # of all choices together
MAX_PLACE_CHARS = 200
CHECK_S = 5.0
NO_FORMATS = FormatChecker(formats=())  # a pattern's dialect is the engine's business, not Python's


# Not the loop's own threads, which tokenize: however many large schemas come, others' prompts do not wait behind them.
_threads = ThreadPoolExecutor(2, thread_name_prefix="schemas")


async def check_large_schema(text: str, left_s: float | None = None) -> None:
    """Checks a large schema in a thread; `check_structured` then finds the answer kept. Raises CallerFault or Expired."""
    if not LARGE_SCHEMA_CHARS < len(text) <= MAX_SCHEMA_CHARS:
        return
    checked = asyncio.get_running_loop().run_in_executor(_threads, schema_problem, text)
    done, _ = await asyncio.wait({checked}, timeout=CHECK_S if left_s is None else max(0.0, min(CHECK_S, left_s)))
    if done:
        return
    checked.cancel()
    if left_s is not None and left_s <= CHECK_S:
        raise Expired
    raise CallerFault("json_schema", f"takes more than {CHECK_S:g} s to check: make it smaller")


def check_structured(sampling: Sampling) -> None:
    """Raises a CallerFault that names the structured-output field."""
    field = sampling.WhichOneof("structured")
    match field:
        case "json_schema":
            problem = schema_problem(sampling.json_schema)
        case "regex":
            problem = regex_problem(sampling.regex)
        case "choice":
            problem = choice_problem(list(sampling.choice.values))
        case "grammar":
            problem = grammar_problem(sampling.grammar)
        case _:
            return
    if problem:
        raise CallerFault(field, problem)


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


@lru_cache(maxsize=64)
def schema_problem(text: str) -> str:
    """Why this is no JSON Schema to answer by; empty when it is. Clients repeat schemas, so answers are kept."""
    if not text.strip():
        return "must not be empty"
    if len(text) > MAX_SCHEMA_CHARS:
        return f"has {len(text)} characters; at most {MAX_SCHEMA_CHARS} are accepted"
    too_deep = f"objects and arrays may nest at most {MAX_SCHEMA_DEPTH} levels"
    try:
        schema = json.loads(text, parse_constant=refuse_constant)
    except RecursionError:
        return too_deep
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at character {error.pos}"
    except ValueError as error:  # a constant such as NaN, or an integer of thousands of digits
        return f"not valid JSON: {error}"
    if not isinstance(schema, dict):
        return "must be a JSON object"
    if depth_exceeds(schema, MAX_SCHEMA_DEPTH):
        return too_deep
    dialect = schema.get("$schema", "")
    if not isinstance(dialect, str):
        return "not a valid JSON Schema: $.$schema must be a string"
    meta = validator_for(schema, default=Draft202012Validator).META_SCHEMA
    try:
        wrong = next(validator_for(meta)(meta, format_checker=NO_FORMATS).iter_errors(schema), None)
    except RecursionError:
        return too_deep
    if wrong:
        return f"not a valid JSON Schema: {wrong.json_path[:MAX_PLACE_CHARS]} breaks {str(wrong.validator)!r}"
    return ""


@lru_cache(maxsize=64)
def regex_problem(pattern: str) -> str:
    if not pattern:
        return "must not be empty"
    if len(pattern) > MAX_REGEX_CHARS:
        return f"has {len(pattern)} characters; at most {MAX_REGEX_CHARS} are accepted"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Not `compile`: a class of all characters that ignores case takes it a third of a second, for twelve characters.
            _parser.parse(pattern)
    except re.error as error:
        # Dialects differ in their escapes (\p{L}): the engine knows its own.
        return "" if error.msg.startswith("bad escape") else f"does not compile: {error.msg} at character {error.pos}"
    except (RecursionError, OverflowError):
        return "does not compile: too deeply nested, or a repeat count too large"
    return ""


def choice_problem(values: list[str]) -> str:
    if not values:
        return "must name at least one string"
    if len(values) > MAX_CHOICES:
        return f"has {len(values)} strings; at most {MAX_CHOICES} are accepted"
    if not all(values):
        return "must not contain an empty string"
    if sum(map(len, values)) > MAX_CHOICE_CHARS:
        return f"its strings must have at most {MAX_CHOICE_CHARS} characters together"
    return ""


def grammar_problem(text: str) -> str:
    if not text.strip():
        return "must not be empty"
    if len(text) > MAX_GRAMMAR_CHARS:
        return f"has {len(text)} characters; at most {MAX_GRAMMAR_CHARS} are accepted"
    return ""
