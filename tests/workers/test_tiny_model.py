"""The built-in model: small, complete, and right about what it was taught."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from penstock_workers.tiny import KNOWN_ANSWERS, MODEL_DIR, vocabulary
from penstock_workers.tiny.corpus import documents, vocabulary_texts

CONFIG = json.loads((MODEL_DIR / "config.json").read_text())
TOKENIZER = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
KNOWN = json.loads(KNOWN_ANSWERS.read_text())


def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    template = environment.from_string((MODEL_DIR / "chat_template.jinja").read_text())
    return template.render(messages=messages, add_generation_prompt=add_generation_prompt)


def tensors() -> dict[str, Any]:
    content = (MODEL_DIR / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + size])
    return {name: about for name, about in header.items() if name != "__metadata__"}


def test_all_of_it_fits_in_twelve_megabytes() -> None:
    assert sum(file.stat().st_size for file in MODEL_DIR.parent.rglob("*") if "__pycache__" not in file.parts) <= 12_000_000


def test_the_directory_is_complete() -> None:
    assert {file.name for file in MODEL_DIR.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_shape_is_one_that_every_engine_runs() -> None:
    assert CONFIG == vocabulary.CONFIG
    assert CONFIG["architectures"] == ["LlamaForCausalLM"] and CONFIG["max_position_embeddings"] == 4096
    assert CONFIG["head_dim"] == 64 and CONFIG["num_key_value_heads"] == 2


def test_the_head_is_not_tied_to_the_embedding() -> None:
    weights = tensors()
    head, embedding = weights["lm_head.weight"], weights["model.embed_tokens.weight"]
    assert CONFIG["tie_word_embeddings"] is False
    assert head["shape"] == embedding["shape"] == [CONFIG["vocab_size"], CONFIG["hidden_size"]]
    assert head["data_offsets"] != embedding["data_offsets"]
    assert {about["dtype"] for about in weights.values()} == {"BF16"}


def test_the_tokenizer_has_as_many_tokens_as_the_model() -> None:
    assert TOKENIZER.get_vocab_size() == CONFIG["vocab_size"] == vocabulary.VOCAB_SIZE


def test_special_tokens_end_answers() -> None:
    generation = json.loads((MODEL_DIR / "generation_config.json").read_text())
    ends = [TOKENIZER.token_to_id(name) for name in (vocabulary.TURN_END, vocabulary.END_OF_TEXT)]
    assert generation["eos_token_id"] == ends and CONFIG["eos_token_id"] == ends[0]
    for name in vocabulary.SPECIAL:
        assert TOKENIZER.encode(name).ids == [TOKENIZER.token_to_id(name)]
        assert TOKENIZER.decode(TOKENIZER.encode(name).ids, skip_special_tokens=True) == ""


@settings(max_examples=60)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back_from_its_tokens(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text", ["Reykjavík été", "你好，世界", "🦊👨‍👩‍👧❤️", "e\u0301 \u00e9", "  two\t\n\n lines \r\n", "\u0000\u200d"]
)
def test_text_of_several_bytes_comes_back_from_its_tokens(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_a_character_can_span_tokens() -> None:
    assert len(TOKENIZER.encode("鷹").ids) > 1


def test_the_template_renders_every_role() -> None:
    messages = [{"role": role, "content": f"as {role}"} for role in ("system", "user", "assistant", "tool")]
    rendered = render(messages)
    for message in messages:
        assert f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" in rendered
    assert rendered == render(messages, add_generation_prompt=False) + "<|im_start|>assistant\n"


def test_the_template_of_a_longer_chat_extends_that_of_a_shorter_one() -> None:
    chat = [{"role": role, "content": turn[role]} for turn in ({"user": "a", "assistant": "b"}, {"user": "c"}) for role in turn]
    assert render(chat).startswith(render(chat[:1]) + "b<|im_end|>\n")


def test_the_template_refuses_a_role_it_does_not_know() -> None:
    with pytest.raises(jinja2.TemplateError, match="system, user, assistant, tool"):
        render([{"role": "robot", "content": "beep"}])


def test_the_training_text_is_a_function_of_its_seed() -> None:
    assert list(documents(7, 50)) == list(documents(7, 50)) != list(documents(8, 50))


def test_the_training_text_has_chats_and_plain_text_and_several_scripts() -> None:
    made = list(documents(3, 1000))
    roles = {role for document in made for role, _ in document}
    text = "".join(content for document in made for _, content in document)
    assert roles == {"", "system", "user", "assistant", "tool"}
    assert all(sample in text for sample in ("é", "水", "🦊"))
    assert not any(special in text for special in vocabulary.SPECIAL)


@pytest.mark.slow
def test_every_file_but_the_weights_comes_out_the_same_again(tmp_path: Path) -> None:
    vocabulary.write_tokenizer(vocabulary_texts(), tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        file.name: file.read_text() for file in MODEL_DIR.iterdir() if file.name != "model.safetensors"
    }


def test_text_with_too_few_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too few different words"):
        vocabulary.write_tokenizer(["a few words"], tmp_path)


def test_enough_answers_are_known() -> None:
    assert len(KNOWN["greedy"]) >= 10 and len(KNOWN["chat"]) >= 3
    assert len({turn["user"] for turn in KNOWN["greedy"]}) == len(KNOWN["greedy"])
    assert {"user": "What is the capital of France?", "answer": "The capital of France is Paris."} in KNOWN["greedy"]


@pytest.fixture(scope="module")
def model() -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    return transformers.LlamaForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


def generate(model: Any, prompts: list[str], max_new_tokens: int, ends: list[int]) -> list[list[int]]:
    """Greedy, one batch, padded on the left."""
    import torch

    encoded = [TOKENIZER.encode(prompt).ids for prompt in prompts]
    width = max(map(len, encoded))
    ids = torch.tensor([[0] * (width - len(one)) + one for one in encoded])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in encoded])
    out = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=0
    )
    answers: list[list[int]] = out[:, width:].tolist()
    return answers


@pytest.mark.slow
def test_training_begins_with_a_model_that_copies() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from penstock_workers.tiny.first_weights import start_as_a_copier

    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**{key: CONFIG[key] for key in CONFIG if key not in ("architectures", "dtype")})).eval()
    start_as_a_copier(model)
    ids = torch.randperm(CONFIG["vocab_size"])[None, :24].repeat(1, 2)
    with torch.no_grad():
        said = model(input_ids=ids).logits[0, 24:-1].argmax(-1)
    assert (said == ids[0, 25:]).float().mean() > 0.5


@pytest.mark.slow
def test_known_questions_get_their_known_answers(model: Any) -> None:
    prompts = [render([{"role": "user", "content": turn["user"]}]) for turn in KNOWN["greedy"]]
    answers = generate(model, prompts, 48, [0, 2])
    assert [TOKENIZER.decode(answer) for answer in answers] == [turn["answer"] for turn in KNOWN["greedy"]]


@pytest.mark.slow
def test_long_answers_vary_and_differ_between_prompts(model: Any) -> None:
    asked = [f"Tell me a story about {hero}." for hero in ("a fox", "an owl", "a bear")]
    prompts = ["Once upon a time", *(render([{"role": "user", "content": question}]) for question in asked)]
    answers = generate(model, prompts, 48, [])
    assert all(len(set(answer)) > 20 for answer in answers)
    assert len(set(map(tuple, answers))) == len(answers)
