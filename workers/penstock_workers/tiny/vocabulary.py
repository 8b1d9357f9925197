"""The byte-level BPE tokenizer, the chat template and the shape of the built-in model.

Promise: everything here is a pure function of the text given; the same text gives the same files.
Digits are single tokens, so that small sums can be learnt, and no normalizer runs, so that every
byte sequence that is valid UTF-8 comes back as it went in.
"""

import json
from collections.abc import Iterable
from pathlib import Path

VOCAB_SIZE = 2048
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END)
MAX_MODEL_LEN = 4096  # tokens
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role not in ["system", "user", "assistant", "tool"] %}
        {{- raise_exception("a message's role is one of system, user, assistant, tool") }}
    {%- endif %}
    {{- "<|im_start|>" + message.role + "\\n" + (message.content or "") + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
"""

# head_dim 64 and 2 KV heads: every vLLM attention backend has kernels for it, and two ranks can share it.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.04,
    "intermediate_size": 384,
    "max_position_embeddings": MAX_MODEL_LEN,
    "mlp_bias": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
}
GENERATION = {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0}
_EXACT = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
TOKENIZER_CONFIG = {
    "added_tokens_decoder": {str(number): {"content": name, "special": True, **_EXACT} for number, name in enumerate(SPECIAL)},
    "clean_up_tokenization_spaces": False,
    "eos_token": TURN_END,
    "model_max_length": MAX_MODEL_LEN,
    "pad_token": END_OF_TEXT,
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def write_tokenizer(texts: Iterable[str], out: Path) -> None:
    """Trains the tokenizer and writes every file of the model directory but the weights."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the text gives {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}: it has too few different words")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", GENERATION),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
