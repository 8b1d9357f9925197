"""Header compression (RFC 7541): a full decoder, and an encoder that never uses the dynamic table.

Promise: decoding holds at most `MAX_TABLE` octets of table and `MAX_LIST` octets of headers, whatever the peer sends;
every malformed block raises `HpackError` and nothing else.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

Header = tuple[bytes, bytes]

MAX_TABLE: Final = 4096  # octets as section 4.1 counts them; the default, which is what we advertise
MAX_LIST: Final = 16 * 1024  # octets of a decoded header list
CACHED_BLOCKS: Final = 64
CACHED_OCTETS: Final = 512  # of a block that is worth keeping

STATIC: Final[tuple[Header, ...]] = (
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"), (b":path", b"/index.html"),
    (b":scheme", b"http"), (b":scheme", b"https"), (b":status", b"200"), (b":status", b"204"), (b":status", b"206"),
    (b":status", b"304"), (b":status", b"400"), (b":status", b"404"), (b":status", b"500"), (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"), (b"accept-language", b""), (b"accept-ranges", b""), (b"accept", b""),
    (b"access-control-allow-origin", b""), (b"age", b""), (b"allow", b""), (b"authorization", b""),
    (b"cache-control", b""), (b"content-disposition", b""), (b"content-encoding", b""), (b"content-language", b""),
    (b"content-length", b""), (b"content-location", b""), (b"content-range", b""), (b"content-type", b""),
    (b"cookie", b""), (b"date", b""), (b"etag", b""), (b"expect", b""), (b"expires", b""), (b"from", b""),
    (b"host", b""), (b"if-match", b""), (b"if-modified-since", b""), (b"if-none-match", b""), (b"if-range", b""),
    (b"if-unmodified-since", b""), (b"last-modified", b""), (b"link", b""), (b"location", b""),
    (b"max-forwards", b""), (b"proxy-authenticate", b""), (b"proxy-authorization", b""), (b"range", b""),
    (b"referer", b""), (b"refresh", b""), (b"retry-after", b""), (b"server", b""), (b"set-cookie", b""),
    (b"strict-transport-security", b""), (b"transfer-encoding", b""), (b"user-agent", b""), (b"vary", b""),
    (b"via", b""), (b"www-authenticate", b""),
)  # fmt: skip

# Code lengths of octets 0 to 255 and of EOS (Appendix B). The code is canonical, so lengths are all there is to it.
CODE_LENGTHS: Final = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
)  # fmt: skip
EOS: Final = 256


class HpackError(Exception):
    """The peer's header block is malformed or too large: the connection cannot go on."""


def _codes() -> dict[tuple[int, int], int]:
    """(length, code) -> octet."""
    codes: dict[tuple[int, int], int] = {}
    code = previous = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(CODE_LENGTHS)):
        code <<= length - previous
        codes[length, code] = symbol
        code += 1
        previous = length
    return codes


def _automaton() -> tuple[list[int], list[int], frozenset[int]]:
    """Next state and octet (or -1) for state * 16 + four bits, and the states in which a string may end.

    A state is a prefix of a code. No code has fewer than five bits, so four give at most one octet. State -1: no such code.
    """
    codes = _codes()
    prefixes = {(length, code >> (full - length)) for full, code in codes for length in range(full)}
    states = {prefix: number for number, prefix in enumerate(sorted(prefixes))}
    following, octets = [-1] * (16 * len(states)), [-1] * (16 * len(states))
    for (length, code), state in states.items():
        for bits in range(16):
            at, prefix, octet = length, code, -1
            for shift in (3, 2, 1, 0):
                at, prefix = at + 1, prefix << 1 | bits >> shift & 1
                symbol = codes.get((at, prefix))
                if symbol is not None:
                    octet = symbol
                    at = prefix = 0
            if octet != EOS:
                following[state * 16 + bits] = states.get((at, prefix), -1)
                octets[state * 16 + bits] = octet
    ends = {state for (length, code), state in states.items() if length < 8 and code == (1 << length) - 1}
    return following, octets, frozenset(ends)


_FOLLOWING, _OCTETS, _ENDS = _automaton()


def huffman_decode(data: bytes) -> bytes:
    out = bytearray()
    state, following, octets = 0, _FOLLOWING, _OCTETS
    for octet in data:
        at = state << 4 | octet >> 4
        if octets[at] >= 0:
            out.append(octets[at])
        at = following[at] << 4 | octet & 15
        if at < 0:
            raise HpackError("no such code")
        if octets[at] >= 0:
            out.append(octets[at])
        state = following[at]
        if state < 0:
            raise HpackError("no such code")
    if state not in _ENDS:
        raise HpackError("bad padding")
    return bytes(out)


def encode_integer(value: int, prefix_bits: int, first: int) -> bytes:
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


_STATIC_INDEX: Final = {header: index for index, header in reversed(list(enumerate(STATIC, 1)))}
_STATIC_NAME: Final = {name: index for index, (name, _) in reversed(list(enumerate(STATIC, 1)))}


def encode(headers: Iterable[Header]) -> bytes:
    """A block that any decoder reads in any state."""
    out = []
    for name, value in headers:
        index = _STATIC_INDEX.get((name, value))
        if index is not None:
            out.append(encode_integer(index, 7, 0x80))
            continue
        index = _STATIC_NAME.get(name)
        if index is not None:
            out.append(encode_integer(index, 4, 0x00))
        else:
            out += (b"\x00", encode_integer(len(name), 7, 0), name)
        out += (encode_integer(len(value), 7, 0), value)
    return b"".join(out)


class Decoder:
    """The dynamic table of one connection's incoming side."""

    __slots__ = ("_cache", "_size", "_table", "limit")

    def __init__(self) -> None:
        self._table: deque[Header] = deque()
        self._size = 0
        self.limit = MAX_TABLE
        # A client repeats itself: while the table stands, the same octets mean the same headers.
        self._cache: dict[bytes, tuple[Header, ...]] = {}

    def decode(self, block: bytes) -> tuple[Header, ...]:
        known = self._cache.get(block)
        if known is not None:
            return known
        headers, changed = self._decode(block)
        if changed or len(self._cache) >= CACHED_BLOCKS:
            self._cache.clear()
        if not changed and len(block) <= CACHED_OCTETS:
            self._cache[block] = headers
        return headers

    def _decode(self, block: bytes) -> tuple[tuple[Header, ...], bool]:
        headers: list[Header] = []
        position, total, changed = 0, 0, False
        end = len(block)
        while position < end:
            first = block[position]
            if first & 0x80:
                index, position = _integer(block, position, 7)
                header = self._at(index)
            elif first & 0xE0 == 0x20:
                if headers:
                    raise HpackError("table size update after a header")
                limit, position = _integer(block, position, 5)
                if limit > MAX_TABLE:
                    raise HpackError("table larger than advertised")
                self.limit, changed = limit, True
                self._evict(0)
                continue
            else:
                indexing = first & 0x40
                index, position = _integer(block, position, 6 if indexing else 4)
                if index:
                    name = self._at(index)[0]
                else:
                    name, position = _string(block, position)
                value, position = _string(block, position)
                header = (name, value)
                if indexing:
                    self._insert(header)
                    changed = True
            headers.append(header)
            total += len(header[0]) + len(header[1]) + 32
            if total > MAX_LIST:
                raise HpackError("header list too large")
        return tuple(headers), changed

    def _at(self, index: int) -> Header:
        if 0 < index <= len(STATIC):
            return STATIC[index - 1]
        index -= len(STATIC) + 1
        if 0 <= index < len(self._table):
            return self._table[index]
        raise HpackError("index outside the tables")

    def _insert(self, header: Header) -> None:
        size = len(header[0]) + len(header[1]) + 32
        self._evict(size)
        if size <= self.limit:
            self._table.appendleft(header)
            self._size += size

    def _evict(self, room: int) -> None:
        while self._table and self._size + room > self.limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + 32


def _integer(block: bytes, position: int, prefix_bits: int) -> tuple[int, int]:
    limit = (1 << prefix_bits) - 1
    value = block[position] & limit
    position += 1
    if value < limit:
        return value, position
    shift = 0
    while True:
        if position >= len(block) or shift > 21:
            raise HpackError("truncated or oversized integer")
        octet = block[position]
        position += 1
        value += (octet & 127) << shift
        if octet < 128:
            return value, position
        shift += 7


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    if position >= len(block):
        raise HpackError("truncated string")
    coded = block[position] & 0x80
    length, position = _integer(block, position, 7)
    end = position + length
    if end > len(block):
        raise HpackError("truncated string")
    data = block[position:end]
    return (huffman_decode(data) if coded else data), end
