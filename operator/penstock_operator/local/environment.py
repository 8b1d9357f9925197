"""The environment of a run's processes.

Promise: Ray listens on loopback only and asks every caller for the run's token; nothing in the caller's
own Ray settings leads the run to another cluster.
"""

import secrets
from collections.abc import Mapping

from penstock_operator.local.owned import RUN_ID
from penstock_operator.local.state import Run

_NOT_INHERITED = ("RAY_", "PENSTOCK_", "VLLM_NIXL_")
# Makes vLLM and Ray start three times slower.
_NEVER = ("PYTHONDONTWRITEBYTECODE",)


def child_environment(run: Run, given: Mapping[str, str]) -> dict[str, str]:
    """For the router, and the base of Ray's."""
    kept = {key: value for key, value in given.items() if not key.startswith(_NOT_INHERITED) and key not in _NEVER}
    without_proxy = ",".join(filter(None, (given.get("no_proxy") or given.get("NO_PROXY"), "127.0.0.1,localhost,::1")))
    return kept | {
        RUN_ID: run.run_id,
        # A proxy meant for the internet would otherwise carry loopback gRPC.
        "no_proxy": without_proxy,
        "NO_PROXY": without_proxy,
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
    }


def ray_environment(run: Run, given: Mapping[str, str]) -> dict[str, str]:
    """For the Ray head and, through it, the engines."""
    return child_environment(run, given) | {
        # Without it Ray binds every interface although 127.0.0.1 is asked for.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # Ten times a second by default: 5 % of a core for ever, on a machine that computes tokens.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        # Ray runs its workers at nice 15: behind everything else on the machine, the clients that wait for them included.
        "RAY_worker_niceness": "0",
        # On a loaded machine a worker process may take longer than Ray's 60 s to register.
        "RAY_worker_register_timeout_seconds": "180",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(max(1, round(run.drain_s))),
        # Process titles would be written over the environment, and with it over the run's id.
        "SPT_NOENV": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
