"""Parts of the CPU lock for images that need less than an engine.

    python deploy/images/locks.py --write

`operator-router/requirements.lock` is what the extras `router` and `operator` need, `build.lock` what builds the wheel: the same
versions and hashes as in deploy/locks/cpu, so that there is one resolution. A test compares them with what this would write.
"""

import re
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
LOCK = HERE.parent / "locks/cpu/requirements.lock"
HEADER = "# From deploy/locks/cpu/requirements.lock by deploy/images/locks.py; do not edit.\n"
FILES = {
    HERE / "operator-router/requirements.lock": Requirement("penstock[router,operator]"),
    HERE / "build.lock": Requirement("hatchling"),
}


def blocks(text: str) -> dict[str, str]:
    """Name -> its pin with all hashes."""
    found = re.split(r"(?m)^(?=[a-zA-Z0-9])", text)
    return {canonicalize_name(re.split(r"[=\[ ;]", block)[0]): block for block in found if "==" in block.split("\n")[0]}


def closure(root: Requirement) -> set[str]:
    """Names that an installed distribution needs on Linux, its own not among them."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(canonicalize_name(root.name), frozenset(root.extras))]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for line in distribution(name).requires or ():
            needed = Requirement(line)
            wanted = [{"extra": extra} for extra in (extras or {""})]
            if needed.marker is None or any(needed.marker.evaluate(one) for one in wanted):
                todo.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    names = {name for name, _ in seen}
    return names - {"penstock"}


def text(root: Requirement) -> str:
    pinned = blocks(LOCK.read_text())
    return HEADER + "".join(pinned[name].rstrip("\n") + "\n" for name in sorted(closure(root)))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: locks.py --write")
    for path, root in FILES.items():
        path.write_text(text(root))
