"""`make bench`: every figure in one JSON document, in out/bench.json, and a short table on stderr.

Each bench is a process of its own, one after the other: two cores carry one measurement at a time.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
BENCHES = ("bench_index.py", "bench_text.py", "bench_router.py", "bench_ttft.py", "bench_peers.py")


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    family = next((x.split(":")[1].strip() for x in lines if x.startswith("cpu family")), "?")
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "?") + f", family {family}"


def main() -> int:
    out: dict[str, Any] = {"machine": cpu_model(), "python": platform.python_version()}
    failed = []
    for name in BENCHES:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, str(FOLDER / name)], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(name)
            continue
        out[name.removesuffix(".py").removeprefix("bench_")] = json.loads(done.stdout)
    target = FOLDER.parent / "out/bench.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps(out, indent=1))
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
