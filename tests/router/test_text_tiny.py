"""The built-in model's files, and agreement with transformers, which vLLM uses."""

from array import array
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from penstock_router.text import TextModel

FOLDER = Path(__file__).resolve().parents[2] / "workers/penstock_workers/tiny/model"
FILES = {f.name: f.read_bytes() for f in FOLDER.iterdir() if f.suffix in (".json", ".jinja")}
MODEL = TextModel.load(FILES, 16, bytes(32))
TALK = [
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "What is the capital of France? <|im_end|>"},
    {"role": "assistant", "content": "Paris.\n\n  "},
    {"role": "user", "content": "Größe, 中文，가 😀 and\ttabs\r\n" * 40},
]


def test_the_built_in_model_gets_the_fast_path() -> None:
    assert (MODEL.cut_classes, MODEL.encoder_name) == ("SNC", "words")


def test_the_built_in_model_states_its_facts() -> None:
    assert (MODEL.max_model_len, MODEL.vocab_size) == (4096, 2048)


def test_a_chat_with_the_built_in_model_is_encoded_as_a_whole() -> None:
    text = MODEL.render_chat(TALK)
    ids = Tokenizer.from_buffer(FILES["tokenizer.json"]).encode(text, add_special_tokens=False).ids
    for _ in range(2):
        assert MODEL.encode_chat(TALK).ids == array("I", ids).tobytes()


@pytest.fixture(scope="module")
def reference() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(FOLDER))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_chats_and_completions_are_what_transformers_makes_of_them(reference: Any) -> None:
    text = reference.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert MODEL.render_chat(TALK) == text
    ids = reference.apply_chat_template(TALK, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert list(array("I", MODEL.encode_chat(TALK).ids)) == ids
    assert list(array("I", MODEL.encode_prompt(text).ids)) == reference(text)["input_ids"]


TEMPLATES = {
    "generation": "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% endfor %}\n\n",
    "white space": "{%- set ns = namespace(n=0) %}\n{%- for m in messages[::-1] %}\n    {%- set ns.n = ns.n + 1 %}\n"
    " {{ ns.n }}{{ m.role }}\n{%- endfor %}",
    "json": "{{ bos_token }}{% for m in messages if m.role != 'system' %}{% if loop.first %}\n[{% endif %}{{ m | tojson }}, "
    "{% endfor %}]",
    "undefined": "{% if tools is not none %}x{% endif %}{% if not date is defined %}{% set date = '1' %}{% endif %}{{ date }}"
    "{{ eos_token }}{{ pad_token }}",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_transformers_renders_them(reference: Any, name: str) -> None:
    template = TEMPLATES[name]
    model = TextModel.load({**FILES, "chat_template.jinja": template.encode()}, 16, bytes(32))
    wanted = reference.apply_chat_template(TALK, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert model.render_chat(TALK) == wanted
