"""What the router of a local run says of its workers.

Promise: no answer is no worker; nothing is raised.
"""

from collections.abc import Iterable, Mapping

from penstock_operator.local.progress import Joined


def workers(address: str) -> tuple[Joined, ...]:
    """Those the router knows; none while it does not answer."""
    # Here and not at the top: importing gRPC would delay the start of the children.
    from penstock_client import Client, PenstockError

    try:
        with Client(address, api_key="") as client:
            found = client.status(timeout_s=2).workers
    except PenstockError:
        return ()
    return tuple(Joined(one.worker_id, one.pool, one.state) for one in found)


def differing(expected: Mapping[str, int], found: Iterable[Joined]) -> dict[str, int]:
    """By pool: how many ready workers there are too few (above 0) or too many (below 0)."""
    ready = [one.pool for one in found if one.state == "ready"]
    return {pool: count - ready.count(pool) for pool, count in expected.items() if count != ready.count(pool)}
