"""Hand-made messages are the message class's own."""

from hypothesis import given
from hypothesis import strategies as st

from penstock_proto.v1.inference_pb2 import GenerateResponse
from penstock_router.serve.grpc_bytes import request_id_field, text_and_ids


@given(st.text(max_size=300), st.lists(st.integers(0, 2**32 - 1), max_size=50), st.text(max_size=128))
def test_the_bytes_parse_to_the_message(text: str, ids: list[int], request_id: str) -> None:
    made = GenerateResponse.FromString(text_and_ids(text, ids) + request_id_field(request_id))
    assert made == GenerateResponse(text=text, token_ids=ids, request_id=request_id)


def test_long_texts_too() -> None:
    made = GenerateResponse.FromString(text_and_ids("é" * 5000, range(5000)))
    assert made == GenerateResponse(text="é" * 5000, token_ids=range(5000))
