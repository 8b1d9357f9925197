"""A supervisor over the stand-ins, as a process of its own: `python supervised.py HTTP GRPC REPORTS`."""

import sys

from penstock_operator.api import default_text, load
from penstock_operator.local.ports import Listen
from penstock_operator.local.state import LocalError
from penstock_operator.local.supervisor import Programs, supervise

if __name__ == "__main__":
    try:
        code = supervise(
            load(default_text()),
            Listen(*sys.argv[1:4]),
            lambda line: print(line, flush=True),
            Programs("local_programs", "local_programs"),
        )
    except LocalError as error:
        print(f"refused: {error}", flush=True)
        code = 3
    sys.exit(code)
