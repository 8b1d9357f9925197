"""How the command line speaks: one JSON document, or text; errors in one line."""

import json
import sys
from collections.abc import Sequence
from typing import Any


class Usage(Exception):
    """Bad usage or a bad manifest: exit code 2."""


class Failure(Exception):
    """Anything else that went wrong: exit code 1."""


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; numbers stand right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    numeric = [all(_is_number(row[column]) for row in rows) and bool(rows) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _is_number(cell: str) -> bool:
    return cell.rstrip("%").replace(".", "", 1).isdigit()


def seconds(value: float) -> str:
    """ms below a second: what people compare TTFT and TPOT in."""
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def say(line: str) -> None:
    """A progress line. The `ready` line alone is output that programs read; it goes to stdout."""
    ready = line.startswith("ready ")
    print(line if ready else f"penstock: {line}", file=sys.stdout if ready else sys.stderr, flush=True)
