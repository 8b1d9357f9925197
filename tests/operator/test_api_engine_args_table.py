"""The committed table of engine arguments is that of the installed vLLM."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import engine_args_table

from penstock_operator.api.engine_args import OWNED, table


def test_every_argument_penstock_owns_exists() -> None:
    assert OWNED.keys() - table().keys() == set()


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.filterwarnings("default")
def test_the_table_is_current() -> None:
    assert engine_args_table.TABLE.read_text() == engine_args_table.text(engine_args_table.generate())
