"""Logs as one JSON object a line on stderr.

Promise: what callers attach by `extra` becomes keys; texts of prompts and answers are never passed here.
"""

import json
import logging
import sys
import time

# The last ones are added to every record by vLLM's and Ray's record factories.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {
    "message", "asctime", "taskName", "vllm_process_name", "_ray_timestamp_ns",
}  # fmt: skip


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {k: v for k, v in vars(record).items() if k not in _OWN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str) -> None:
    """Penstock's loggers write JSON lines; those of libraries stay as they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("penstock_workers")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
