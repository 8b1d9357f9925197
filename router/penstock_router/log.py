"""JSON logs on stderr, one object per line.

Promise: a line is written whole; fields are what the caller names, never a prompt. Request lines are gathered and
written together, because one system call per request is a tenth of what a short request costs.
"""

import asyncio
import json
import logging
import os
import sys
import time
from typing import Any, Final

FLUSH_S: Final = 0.25
FLUSH_LINES: Final = 256
_escape = json.encoder.encode_basestring_ascii


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        out: dict[str, Any] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            out.update(fields)
        if record.exc_info and record.exc_info[0] is not None:
            # An exception's message may quote input; its type and place are enough to find it.
            trace = record.exc_info[2]
            out["exception"] = record.exc_info[0].__name__
            places = []
            while trace is not None:
                code = trace.tb_frame.f_code
                places.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}:{code.co_name}")
                trace = trace.tb_next
            out["trace"] = places
        return json.dumps(out, default=str)


def configure(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def event(logger: logging.Logger, name: str, level: int = logging.INFO, **fields: Any) -> None:
    """A structured line."""
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"fields": fields})


class RequestLog:
    """One line per request, written a few times a second."""

    def __init__(self, enabled: bool = True, fd: int = 2) -> None:
        self.enabled = enabled
        self._lines: list[str] = []
        self._fd = fd
        self._timer: asyncio.TimerHandle | None = None

    def write(self, request_id: str, outcome: str, tail: str) -> None:
        """`tail` is the rest of a JSON object's members, made by the caller from numbers and fixed words."""
        if not self.enabled:
            return
        self._lines.append(
            f'{{"time": {time.time():.6f}, "level": "info", "logger": "penstock.request", "event": "request", '
            f'"request_id": {_escape(request_id)}, "outcome": "{outcome}", {tail}}}\n'
        )
        if len(self._lines) >= FLUSH_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        data = "".join(lines).encode()
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                return  # a log nobody reads must not stop requests; what did not fit is lost
            except OSError:
                return
