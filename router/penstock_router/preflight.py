"""What a large GenerateRequest is made of, before it is parsed.

Promise: one pass over tags and lengths, which stops at the first field that has too many entries. An empty chat message
takes two octets on the wire and fifty in memory, and parsing holds up everybody: 16 MiB of them 1.5 s and 400 MiB.
"""

from typing import Final

from penstock_proto.v1.common_pb2 import Sampling
from penstock_proto.v1.inference_pb2 import GenerateRequest

SMALL: Final = 256 * 1024  # octets that are parsed unseen
MAX_ENTRIES: Final = 10_000  # fields of one message, repeated ones counted one by one
_REQUEST: Final = GenerateRequest.DESCRIPTOR.fields_by_name
_CHAT, _SAMPLING = _REQUEST["chat"].number, _REQUEST["sampling"].number
_CHOICE: Final = Sampling.DESCRIPTOR.fields_by_name["choice"].number
Tree = dict[int, tuple[str, "Tree"]]
_TREE: Final[Tree] = {_CHAT: ("messages", {}), _SAMPLING: ("sampling", {_CHOICE: ("choice", {})})}


def crowded(data: bytes) -> str:
    """The field that has more than MAX_ENTRIES entries; empty: none. Malformed octets are the parser's to refuse."""
    return "" if len(data) <= SMALL else _walk(data, 0, len(data), "request", _TREE)


def _walk(data: bytes, at: int, end: int, name: str, tree: Tree) -> str:
    entries = 0
    while at < end:
        entries += 1
        if entries > MAX_ENTRIES:
            return name
        tag, at = _varint(data, at, end)
        match tag & 7:
            case 0:
                _, at = _varint(data, at, end)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                size, at = _varint(data, at, end)
                if tag >> 3 in tree and at + size <= end and (found := _walk(data, at, at + size, *tree[tag >> 3])):
                    return found
                at += size
            case _:
                return ""
    return ""


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """At most ten octets; past the end for one that is cut off."""
    value = shift = 0
    while at < end and shift < 70:
        octet = data[at]
        at += 1
        value |= (octet & 127) << shift
        if octet < 128:
            return value, at
        shift += 7
    return 0, end
