"""Serve's log handlers survive what engines do to logging."""

import logging
import logging.config
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from pathlib import Path

import pytest

from penstock_workers.pool.deployment import serve_log_kept


@pytest.fixture
def serve_buffer(tmp_path: Path) -> Iterator[MemoryHandler]:
    target = logging.FileHandler(tmp_path / "replica.log")
    buffer = MemoryHandler(1, target=target)
    logger = logging.getLogger("ray.serve")
    kept, level = list(logger.handlers), logger.level
    logger.handlers[:] = [buffer]
    logger.setLevel(logging.INFO)
    yield buffer
    logger.handlers[:], logger.level = kept, level
    target.close()


def test_a_library_that_configures_logging_anew_does_not_cost_serve_its_log(serve_buffer: MemoryHandler, tmp_path: Path) -> None:
    with serve_log_kept():
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
        assert serve_buffer.target is None, "this is what it does"
    assert isinstance(serve_buffer.target, logging.FileHandler)
    logging.getLogger("ray.serve").info("still here")
    serve_buffer.flush()
    assert "still here" in (tmp_path / "replica.log").read_text()
