"""The committed table of engine arguments is that of the installed vLLM."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import engine_args_table

from penstock_operator.api.engine_args import OWNED, table


def test_every_argument_penstock_owns_exists() -> None:
    assert OWNED.keys() - table().keys() == set()


def test_what_the_worker_sets_itself_is_refused_in_the_manifest() -> None:
    from penstock_workers.engine.vllm_args import OWNED as WORKERS_OWN

    owned = {key for key in WORKERS_OWN if not key.startswith("no_") and not key.startswith("data_parallel_")}
    assert owned - OWNED.keys() == set()


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.filterwarnings("default")
def test_the_table_is_current() -> None:
    assert engine_args_table.TABLE.read_text() == engine_args_table.text(engine_args_table.generate())
