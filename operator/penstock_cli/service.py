"""Finding the service that a client command talks to, and its errors in words."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

from penstock_cli.output import Failure, Usage
from penstock_client import Client, InvalidArgument, PenstockError, ResourceExhausted, Unavailable
from penstock_client.link import DEFAULT_ADDRESS


def address(given: str | None) -> str:
    """--address, PENSTOCK_ADDRESS, the only service that runs on this machine, or the default port."""
    return given or os.environ.get("PENSTOCK_ADDRESS") or _running() or DEFAULT_ADDRESS


def _running() -> str | None:
    from penstock_operator.local import state

    live = [run for name in state.names() if (run := state.read(state.root() / name)) and run.supervisor()]
    return live[0].grpc if len(live) == 1 else None


@contextmanager
def connect(arguments: argparse.Namespace) -> Iterator[Client]:
    where = address(arguments.address)
    try:
        with Client(where) as client:
            yield client
    except InvalidArgument as error:
        raise Usage(error.message) from error
    except Unavailable as error:
        raise Failure(
            f"{where}: unavailable: {error.message}; `penstock up` starts a service, --address names another"
        ) from error
    except ResourceExhausted as error:
        again = "" if error.retry_after_s is None else f"; try again in {error.retry_after_s:g} s"
        raise Failure(f"{where}: {error.message}{again}") from error
    except PenstockError as error:
        raise Failure(f"{where}: {error.code}: {error.message}") from error
