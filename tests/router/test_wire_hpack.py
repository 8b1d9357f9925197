"""Header compression against the RFC's own examples, and against anything a peer may send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_router.wire import hpack

FIRST = ((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com"))


@pytest.mark.parametrize(
    "blocks",
    [
        # RFC 7541, C.3 (plain) and C.4 (Huffman): three requests on one connection.
        (
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ),
        (
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ),
    ],
)
def test_the_rfcs_requests_decode(blocks: tuple[str, str, str]) -> None:
    decoder = hpack.Decoder()
    assert decoder.decode(bytes.fromhex(blocks[0])) == FIRST
    assert decoder.decode(bytes.fromhex(blocks[1])) == (*FIRST, (b"cache-control", b"no-cache"))
    third = (
        (b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/index.html"), (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    )  # fmt: skip
    assert decoder.decode(bytes.fromhex(blocks[2])) == third


def test_a_block_means_something_else_once_the_table_has_changed() -> None:
    decoder = hpack.Decoder()
    newest = bytes([0x80 | 62])
    decoder.decode(b"\x40\x01a\x011")
    assert decoder.decode(newest) == ((b"a", b"1"),) == decoder.decode(newest)
    decoder.decode(b"\x40\x01b\x012")
    assert decoder.decode(newest) == ((b"b", b"2"),)


def test_the_table_is_bounded() -> None:
    decoder = hpack.Decoder()
    for i in range(1000):
        value = b"%05d" % i * 20
        decoder.decode(b"\x40\x01k" + hpack.encode_integer(len(value), 7, 0) + value)
    assert decoder._size <= hpack.MAX_TABLE
    with pytest.raises(hpack.HpackError):
        decoder.decode(bytes([0x80 | 127, 100]))


@pytest.mark.parametrize(
    "block",
    [
        b"\x80", b"\xff\xff\xff\xff\xff\xff", b"\x00\x85", b"\x00\x05ab", b"\x40", b"\x00\x01a\x83\xff\xff\xff",
        b"\x82\x20", b"\x3f\xff\xff\x7f", b"\x00\x81\x00" + b"\x01x", b"\xff",
    ],
)  # fmt: skip
def test_malformed_blocks_are_refused(block: bytes) -> None:
    with pytest.raises(hpack.HpackError):
        hpack.Decoder().decode(block)


def test_a_list_beyond_the_limit_is_refused() -> None:
    decoder = hpack.Decoder()
    decoder.decode(b"\x40\x01k" + hpack.encode_integer(3000, 7, 0) + b"v" * 3000)
    with pytest.raises(hpack.HpackError):
        decoder.decode(bytes([0x80 | 62]) * 100)  # one octet each, three thousand once expanded


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_nothing_a_peer_sends_raises_anything_else(blocks: list[bytes]) -> None:
    decoder = hpack.Decoder()
    for block in blocks:
        try:
            decoder.decode(block)
        except hpack.HpackError:
            return


names = st.from_regex(rb"[a-z][a-z0-9-]{0,20}", fullmatch=True)


@given(st.lists(st.tuples(names, st.binary(max_size=200)), max_size=12))
def test_what_is_encoded_decodes(headers: list[tuple[bytes, bytes]]) -> None:
    decoder = hpack.Decoder()
    assert decoder.decode(hpack.encode(headers)) == tuple(headers) == decoder.decode(hpack.encode(headers))


@given(st.binary(max_size=60))
def test_huffman_codes_decode(data: bytes) -> None:
    codes = {symbol: (length, code) for (length, code), symbol in hpack._codes().items()}
    bits = "".join(format(codes[octet][1], f"0{codes[octet][0]}b") for octet in data)
    bits += "1" * (-len(bits) % 8)
    packed = int(bits or "0", 2).to_bytes(len(bits) // 8, "big")
    assert hpack.huffman_decode(packed) == data


def test_the_code_is_complete_and_prefix_free() -> None:
    assert sum(2.0**-length for length, _ in hpack._codes()) == 1.0
    assert len(hpack._codes()) == 257
