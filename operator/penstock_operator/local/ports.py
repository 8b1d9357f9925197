"""Listening addresses on this machine.

Promise: an address that is taken is told by the flag that gives another, before anything starts. gRPC
listens with SO_REUSEPORT and would share a port with a stranger in silence.
"""

import errno
import ipaddress
import socket
from dataclasses import dataclass

from penstock_operator.local.state import LocalError


@dataclass(frozen=True, slots=True)
class Listen:
    """The router's addresses, HOST:PORT each."""

    http: str = "127.0.0.1:8000"
    grpc: str = "127.0.0.1:9000"
    reports: str = "127.0.0.1:9001"


def split(flag: str, address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"--{flag}: {address!r} is not HOST:PORT, such as 127.0.0.1:8000")
    if not _is_loopback(host):
        raise ValueError(f"--{flag}: {address!r} is not on loopback; `penstock up` listens on 127.0.0.1 or ::1 only")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(listen: Listen) -> None:
    """Raises ValueError naming the flag that cannot be meant."""
    seen: dict[int, str] = {}
    for flag in ("http", "grpc", "reports"):
        _, port = split(flag, getattr(listen, flag))
        if port and port in seen:
            raise ValueError(f"--{flag}: port {port} is --{seen[port]}'s too; give another")
        seen[port] = flag


def settle(listen: Listen) -> Listen:
    """Checked addresses, free ones; port 0 becomes a free port."""
    settled: dict[str, str] = {}
    for flag in ("http", "grpc", "reports"):
        address = getattr(listen, flag)
        host, port = split(flag, address)
        if port == 0:
            port = free_port(host)
        elif not is_free(host, port):
            raise LocalError(
                f"--{flag}: {address} is in use by another program; give --{flag} {host}:PORT, or PORT 0 for a free one"
            )
        settled[flag] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Listen(**settled)


def is_free(host: str, port: int) -> bool:
    with _socket(host) as probe:
        # As servers do, so that connections of an earlier run in TIME_WAIT do not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise LocalError(f"{host}:{port}: {error.strerror}") from error
    return True


def free_port(host: str = "127.0.0.1") -> int:
    with _socket(host) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def _socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
