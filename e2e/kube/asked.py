"""A cluster that a test asks for, or a loud skip.

Promise: where there can be none the reason is told past pytest's capture, and PENSTOCK_KUBE=required makes it an error.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from kube.build import Missing

Say = Callable[[str], None]
T = TypeVar("T")


@contextlib.contextmanager
def or_skip(make: Callable[[Say], contextlib.AbstractContextManager[T]], say: Say, what: str = "cluster") -> Iterator[T]:
    """`make` raises Missing before it yields."""
    with contextlib.ExitStack() as running:
        try:
            found = running.enter_context(make(say))
        except Missing as error:
            if os.environ.get("PENSTOCK_KUBE") == "required":
                raise
            say(f"SKIPPED, no test {what}: {error}")
            pytest.skip(f"no test {what}: {error}")
        yield found
