"""How a client reaches the service: address, channel options, credentials, deadlines.

Promise: a dead peer is noticed within 30 s by keepalive, and gRPC itself never retries a call, so
that the only retries are those `penstock_client.retry` decides.
"""

import math
import os
import re
from dataclasses import dataclass

from penstock_client.errors import InvalidArgument, Unimplemented

DEFAULT_ADDRESS = "127.0.0.1:9000"
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    # A service that restarts is tried again at once, not after gRPC's back-off of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
)


@dataclass(frozen=True, slots=True)
class Link:
    """Where and as whom to call."""

    address: str
    metadata: tuple[tuple[str, str], ...]
    timeout_s: float | None

    def timeout(self, given_s: float | None) -> float | None:
        """The time a call has: its own, else the client's."""
        return self.timeout_s if given_s is None else check_timeout(given_s)


def link(address: str | None, api_key: str | None, mode: str, timeout_s: float | None) -> Link:
    if mode == "lookaside":
        raise Unimplemented("mode: 'lookaside' is not built yet; use mode='proxy'")
    if mode != "proxy":
        raise InvalidArgument(f"mode: {mode!r} is unknown; accepted: 'proxy'", field="mode")
    address = address or os.environ.get("PENSTOCK_ADDRESS") or DEFAULT_ADDRESS
    if "://" in address or not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s/]+):\d{1,5}", address):
        raise InvalidArgument(f"address: {address!r} is not HOST:PORT, such as {DEFAULT_ADDRESS}", field="address")
    if api_key is None:
        api_key = os.environ.get("PENSTOCK_API_KEY") or None
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise InvalidArgument("api_key: must be printable ASCII", field="api_key")
    metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
    return Link(address, metadata, None if timeout_s is None else check_timeout(timeout_s))


def channel_options(address: str) -> tuple[tuple[str, int], ...]:
    """A proxy of the environment is for the internet: loopback is called directly."""
    local = address.startswith(("127.", "localhost:", "[::1]:"))
    return (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)) if local else CHANNEL_OPTIONS


def check_timeout(timeout_s: float) -> float:
    good = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not good or math.isnan(timeout_s) or timeout_s <= 0:
        raise InvalidArgument(f"timeout_s: {timeout_s!r} is not a number of seconds above 0", field="timeout_s")
    return float(timeout_s)
