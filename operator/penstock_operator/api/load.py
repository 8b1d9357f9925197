"""Reading an LLMService from YAML or JSON.

Promise: what is wrong comes as one line that names the field, its value and what would be accepted.
"""

from collections.abc import Hashable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from penstock_operator.api.check import judge
from penstock_operator.api.llmservice import KIND, LLMService


class ManifestError(ValueError):
    """One line: `FIELD: what is wrong; what would be accepted`."""


class _Loader(yaml.SafeLoader):
    """YAML without repeated keys: the last would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ManifestError(f"line {key.start_mark.line + 1}: the key {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def default_text() -> str:
    """The built-in LLMService, as YAML."""
    return resources.files("penstock_operator.api").joinpath("default.yaml").read_text()


def load(source: Path | str) -> LLMService:
    """From a file (a Path) or from YAML text (a str)."""
    if isinstance(source, Path):
        try:
            source = source.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise ManifestError(f"{source}: {reason}") from error
    return parse(_document(source))


def parse(document: Any) -> LLMService:
    """From the object as the API server has it."""
    service, faults = judge(document)
    if service is None:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ManifestError(f"{faults[0]}{more}")
    return service


def _document(text: str) -> Any:
    try:
        documents = [one for one in yaml.load_all(text, Loader=_Loader) if one is not None]  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ManifestError(f"{line}not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ManifestError(f"not YAML: {' '.join(str(error).split())}") from error
    if len(documents) != 1:
        raise ManifestError(f"the manifest holds {len(documents)} documents; give exactly one {KIND}")
    return documents[0]
