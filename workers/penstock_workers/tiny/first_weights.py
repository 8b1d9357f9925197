"""The weights that training begins with: a model that already copies.

Promise: two attention heads that say again what followed the last token's earlier place in the text
(an induction head) are built in, all else is random or nothing. Answers repeat words of their
questions; to find such heads by itself takes a model of this size more steps than all its training has.

The embedding lives in the lower half of the residual's dimensions; the upper half carries what the
first head moves there: the token before. Dimension 0 is a constant, the only thing by which a head
without a bias can look at a distance.
"""

import torch
from transformers import LlamaForCausalLM

_CONSTANT, _SPREAD = 1.5, 0.4  # of an embedding
_LOOK_BACK, _MATCH = 1.5, 1.4  # how sharply the two heads look
_MOVE, _SAY = 1.0, 3.0  # how strongly they write
_SLOW = 12  # rotations from this one on hardly turn within a hundred tokens: content can be compared there
_HEAD_SCALE = 0.2


def start_as_a_copier(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        half = embedding.shape[1] // 2
        embedding.zero_()
        embedding[:, 1:half].normal_()
        embedding *= _SPREAD * (half - 1) ** 0.5 / embedding.norm(dim=1, keepdim=True)  # equal lengths: equal constants
        embedding[:, 0] = _CONSTANT
        model.lm_head.weight.copy_(embedding)
        model.model.norm.weight.fill_(_HEAD_SCALE)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        _look_one_back(model, half)
        _say_what_followed(model, half)


def _look_one_back(model: LlamaForCausalLM, half: int) -> None:
    """Head 0 of layer 0: its score peaks one token back; it moves that token's embedding to the upper half."""
    attention, size = model.model.layers[0].self_attn, model.config.head_dim
    query, key = attention.q_proj.weight, attention.k_proj.weight
    query[:size] = 0
    key[:size] = 0
    turns = model.model.rotary_emb.inv_freq[:_SLOW]  # per token; the slower ones hardly tell neighbours apart
    query[:_SLOW, 0] = _LOOK_BACK * torch.cos(turns)
    query[size // 2 : size // 2 + _SLOW, 0] = -_LOOK_BACK * torch.sin(turns)
    key[:_SLOW, 0] = _LOOK_BACK
    attention.v_proj.weight[:size] = 0
    for place in range(min(size, half)):
        attention.v_proj.weight[place, place] = 1
        attention.o_proj.weight[half + place, place] = _MOVE


def _say_what_followed(model: LlamaForCausalLM, half: int) -> None:
    """Head 0 of layer 1: finds tokens that follow this one's earlier places and writes their embeddings."""
    attention, size = model.model.layers[1].self_attn, model.config.head_dim
    query, key = attention.q_proj.weight, attention.k_proj.weight
    query[:size] = 0
    key[:size] = 0
    slots = [*range(_SLOW, size // 2), *range(size // 2 + _SLOW, size)]
    for place, slot in enumerate(slots, 1):
        query[slot, place] = _MATCH
        key[slot, half + place] = _MATCH
    attention.v_proj.weight[:size] = 0
    for place in range(1, min(size, half)):
        attention.v_proj.weight[place, place] = 1
        attention.o_proj.weight[place, place] = _SAY
