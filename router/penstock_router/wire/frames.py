"""Frame types, flags, codes and the bounds of one connection (RFC 9113), and the framing of gRPC messages."""

from dataclasses import dataclass
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
FLOW_CONTROL_ERROR: Final = 0x3
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB

MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

DEFAULT_WINDOW: Final = 65_535
MAX_WINDOW: Final = 2**31 - 1
FRAME: Final = 16_384  # the largest frame that every peer takes, and the largest we take

HEAD: Final = Struct(">IBI")  # length << 8 | type, flags, stream
MESSAGE: Final = Struct(">IBIBI")  # a DATA frame's head, then gRPC's: compressed, length
PREFIX: Final = Struct(">BI")
SETTING: Final = Struct(">HI")
U32: Final = Struct(">I")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer can make us hold."""

    max_message: int = 64 << 20  # octets of one gRPC message
    max_streams: int = 4096  # open at once on one connection
    max_header_block: int = 16 * 1024  # octets of one header block, CONTINUATION included
    stream_window: int = 1 << 20  # octets in flight towards us on one stream
    connection_window: int = 16 << 20  # octets in flight towards us on one connection
    max_resets: int = 2_000  # streams a peer may reset beyond those it let end, before the connection is closed,
    resets_per_s: float = 500.0  # and beyond so many a second
    write_high_water: int = 1 << 20  # octets unsent in the socket before streams hold their output
    max_control: int = 4 << 20  # octets of answers unsent beyond what flow control lets through, before the connection is closed
    max_noise: int = 10_000  # frames a second that move nothing: pings, settings, priorities, scraps of data
    max_partial: int = 512 << 20  # octets of incomplete messages over all connections of one server
    max_connections: int = 8192  # of one server; further ones are closed at once
    patience_s: float = 120.0  # for a request to arrive, and for the last of an answer to be taken
    keepalive_s: float = 20.0  # silence before a ping
    keepalive_timeout_s: float = 10.0  # silence after a ping before the connection is given up


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(key, value) for key, value in values.items()))
