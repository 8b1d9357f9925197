"""Chat templates, as transformers and vLLM's server render them.

Promise: the same text as vLLM's server makes of the same messages. A template is code from the model's files: it
runs in Jinja's immutable sandbox, and whatever it raises becomes `TemplateRefused`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from .errors import ModelFilesError, TemplateRefused

MAX_REASON_CHARS = 300
Clock = Callable[[], datetime]


class _Raised(jinja2.TemplateError):
    """The template's author called raise_exception."""


def _raise_exception(message: str) -> None:
    raise _Raised(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which would end up in the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(jinja2.ext.Extension):
    """{% generation %} marks assistant text for training; a prompt shows its body and nothing else."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


class ChatTemplate:
    """One compiled template."""

    __slots__ = ("_clock", "_parts", "_template", "_variables")

    def __init__(self, source: str, file: str, special_tokens: Mapping[str, str], clock: Clock) -> None:
        """`special_tokens` are the variables bos_token, eos_token, ...; `file` is named where the source is no template."""
        environment = _environment()
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelFilesError(file, f"not a chat template: {error}") from error
        self._parts = _wants_parts(tree)
        self._clock = clock
        self._variables: dict[str, Any] = {
            **special_tokens,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            "strftime_now": self._strftime_now,
        }

    def _strftime_now(self, pattern: str) -> str:
        return self._clock().strftime(pattern)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt, up to where the assistant's answer begins."""
        given: Sequence[Mapping[str, Any]] = messages
        if self._parts:
            given = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        try:
            return self._template.render(self._variables, messages=given)
        except _Raised as error:
            raise TemplateRefused(str(error)[:MAX_REASON_CHARS]) from None
        except Exception as error:  # noqa: BLE001 -- foreign code: whatever it raises on these messages, they cannot be rendered
            # Only the kind: messages of other errors may quote the conversation.
            raise TemplateRefused(f"the model's chat template fails on these messages ({type(error).__name__})") from None


def choose_source(config: Mapping[str, Any], jinja_file: str | None) -> tuple[str, str] | None:
    """(source, file it came from), or None where the model has no template. chat_template.jinja wins over the config."""
    if jinja_file is not None:
        return jinja_file, "chat_template.jinja"
    file = "tokenizer_config.json"
    source = config.get("chat_template")
    if isinstance(source, list):
        try:
            source = {entry["name"]: entry["template"] for entry in source}
        except (TypeError, KeyError) as error:
            raise ModelFilesError(file, "chat_template: each entry of the list needs name and template") from error
    if isinstance(source, dict):
        if "default" not in source:
            named = ", ".join(sorted(map(str, source)))
            raise ModelFilesError(file, f"chat_template has no template named default, only: {named}")
        source = source["default"]
    if source is None:
        return None
    if not isinstance(source, str):
        raise ModelFilesError(file, "chat_template must be a string or a list of named templates")
    return source, file


# -- what vLLM calls the content format: templates that loop over a message's content get it as a list of parts


def _is_access(node: jinja2.nodes.Node | None, names: Iterable[str], key: str | None) -> bool:
    """`name`, or with a key `name.key` or `name['key']`; filters, tests and slices of it count."""
    while isinstance(node, jinja2.nodes.Filter | jinja2.nodes.Test) or (
        isinstance(node, jinja2.nodes.Getitem) and isinstance(node.arg, jinja2.nodes.Slice)
    ):
        node = node.node
    if key is not None:
        by_name = isinstance(node, jinja2.nodes.Getattr) and node.attr == key
        by_item = isinstance(node, jinja2.nodes.Getitem) and isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == key
        if not (by_name or by_item):
            return False
        node = node.node  # type: ignore[union-attr]
    return isinstance(node, jinja2.nodes.Name) and node.ctx == "load" and node.name in names


def _names_of_messages(tree: jinja2.nodes.Template) -> set[str]:
    """`messages` and every variable assigned from it."""
    names = {"messages"}
    while True:
        found = {
            assign.target.name
            for assign in tree.find_all(jinja2.nodes.Assign)
            if isinstance(assign.target, jinja2.nodes.Name) and _is_access(assign.node, names, None)
        }
        if found <= names:
            return names
        names |= found


def _content_arguments(macro: jinja2.nodes.Macro, tree: jinja2.nodes.Template, message_names: set[str]) -> Iterator[str]:
    """Names of a macro's parameters that are given a message's content somewhere."""
    for call in tree.find_all(jinja2.nodes.Call):
        if not (isinstance(call.node, jinja2.nodes.Name) and call.node.name == macro.name):
            continue
        for parameter, value in zip(macro.args, call.args, strict=False):
            if _is_access(value, message_names, "content"):
                yield parameter.name
        for keyword in call.kwargs:
            if isinstance(keyword, jinja2.nodes.Keyword) and _is_access(keyword.value, message_names, "content"):
                yield keyword.key


def _wants_parts(tree: jinja2.nodes.Template) -> bool:
    lists = _names_of_messages(tree)
    loops = list(tree.find_all(jinja2.nodes.For))
    names = {x.target.name for x in loops if isinstance(x.target, jinja2.nodes.Name) and _is_access(x.iter, lists, None)}
    if any(_is_access(loop.iter, names, "content") for loop in loops):
        return True
    in_macros: set[int] = set()
    for macro in tree.find_all(jinja2.nodes.Macro):
        arguments = set(_content_arguments(macro, tree, names))
        for loop in macro.find_all(jinja2.nodes.For):
            in_macros.add(id(loop))
            if isinstance(loop.iter, jinja2.nodes.Name) and loop.iter.name in arguments:
                return True
    return any(isinstance(x.iter, jinja2.nodes.Name) and x.iter.name == "content" for x in loops if id(x) not in in_macros)
