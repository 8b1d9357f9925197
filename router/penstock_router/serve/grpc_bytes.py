"""GenerateResponse as bytes, for the message that is sent most: some text, some token ids, nothing else.

Promise: the bytes parse to exactly that message. Building it through the message class costs three times as much, and a
router sends one of these per token and stream.
"""

from collections.abc import Iterable
from typing import Final

from penstock_proto.v1.inference_pb2 import GenerateResponse

_FIELDS = GenerateResponse.DESCRIPTOR.fields_by_name
_TEXT: Final = bytes((_FIELDS["text"].number << 3 | 2,))
_IDS: Final = bytes((_FIELDS["token_ids"].number << 3 | 2,))
_REQUEST_ID: Final = bytes((_FIELDS["request_id"].number << 3 | 2,))


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Varints(dict[int, bytes]):
    """Every id that was sent once; as many as a vocabulary has at most."""

    def __missing__(self, value: int) -> bytes:
        made = self[value] = varint(value)
        return made


_LENGTHS: Final = tuple(map(varint, range(4096)))
_IDS_MADE: Final = _Varints()


def _length(size: int) -> bytes:
    return _LENGTHS[size] if size < 4096 else varint(size)


def text_and_ids(text: str, ids: Iterable[int]) -> bytes:
    packed = b"".join(map(_IDS_MADE.__getitem__, ids))
    if not text:
        return _IDS + _length(len(packed)) + packed if packed else b""
    data = text.encode()
    if not packed:
        return _TEXT + _length(len(data)) + data
    return b"".join((_TEXT, _length(len(data)), data, _IDS, _length(len(packed)), packed))


def request_id_field(request_id: str) -> bytes:
    """What makes a serialized message say which request it answers, appended to it."""
    data = request_id.encode()
    return _REQUEST_ID + _length(len(data)) + data
