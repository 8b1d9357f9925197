"""Chat's and completions' shapes of a choice and of log probabilities."""

from collections.abc import Sequence
from typing import Any, Final

from penstock_proto.v1.common_pb2 import TokenLogprob

from .http_wire import Style, token_text, told


def chat_choice(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text, "refusal": None}}


def chat_token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token_text(token), "logprob": told(token.logprob), "bytes": list(token.token)}


def chat_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    listed = [{**chat_token(token), "top_logprobs": [chat_token(other) for other in token.top]} for token in tokens]
    return {"content": listed, "refusal": None}


def completion_choice(text: str) -> dict[str, Any]:
    return {"text": text}


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """The legacy shape: parallel lists; the alternatives of a token always hold the token itself."""
    texts = [token_text(token) for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    tops = []
    for token, text in zip(tokens, texts, strict=True):
        top: dict[str, float] = {}
        for other in token.top:
            top.setdefault(token_text(other), told(other.logprob))
        top.setdefault(text, told(token.logprob))
        tops.append(top)
    return {
        "tokens": texts,
        "token_logprobs": [told(token.logprob) for token in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


CHAT: Final = Style(
    answer_object="chat.completion",
    chunk_object="chat.completion.chunk",
    id_prefix="chatcmpl-",
    text_open='"delta":{"content":',
    text_close="}",
    opening='"delta":{"role":"assistant","content":""}',
    choice=chat_choice,
    logprobs=chat_logprobs,
)
COMPLETION: Final = Style(
    answer_object="text_completion",
    chunk_object="text_completion",
    id_prefix="cmpl-",
    text_open='"text":',
    text_close="",
    opening="",
    choice=completion_choice,
    logprobs=completion_logprobs,
)
