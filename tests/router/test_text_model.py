import json
import logging
from array import array
from datetime import datetime
from typing import Any

import pytest
from text_families import CORPUS, ROOT, naive_keys, tokenizer_json, tokenizer_of, whole_ids
from tokenizers import Tokenizer, processors

from penstock_router.text import ModelFilesError, TemplateRefused, TextModel, TextRefused, facts
from penstock_router.text.model import special_tokens_around

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}<|im_start|>assistant:"
TEXT = "".join(CORPUS)


def files(family: str = "llama3", **named: Any) -> dict[str, bytes]:
    """tokenizer.json of a family, and JSON files by name with their dots as underscores."""
    out = {"tokenizer.json": tokenizer_json(family), "tokenizer_config.json": json.dumps({"chat_template": TEMPLATE}).encode()}
    for name, value in named.items():
        out[f"{name}.json"] = value if isinstance(value, bytes) else json.dumps(value).encode()
    return out


def load(family: str = "llama3", **named: Any) -> TextModel:
    return TextModel.load(files(family, **named), 16, ROOT, clock=lambda: datetime(2026, 1, 1))


@pytest.fixture(autouse=True)
def _few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads are many here; that trying finds what is wrong is tested elsewhere."""
    monkeypatch.setattr("penstock_router.text.cuts.REPRESENTATIVES", ("a", " ", "\n", "中"))
    monkeypatch.setattr("penstock_router.text.cuts._RANDOM_TEXTS", 20)
    monkeypatch.setattr("penstock_router.text.encoder._PROBES", 20)


LLAMA = load()


def test_a_chat_is_rendered_and_encoded_without_special_tokens_of_its_own() -> None:
    messages = [{"role": "user", "content": TEXT}]
    text = f"<|im_start|>user\n{TEXT}<|im_end|><|im_start|>assistant:"
    assert LLAMA.render_chat(messages) == text
    for _ in range(2):
        found = LLAMA.encode_chat(messages)
        assert found.ids == whole_ids(tokenizer_of("llama3"), text)
        assert found.keys.tolist() == naive_keys(found.ids, 16)
    assert found.reused > 0


@pytest.mark.parametrize("family", ["llama3", "bert", "gpt2"])
def test_a_completion_gets_the_special_tokens_of_its_tokenizer(family: str) -> None:
    model = load(family)
    for text in (TEXT, TEXT + "more", "a"):
        found = model.encode_prompt(text, "salt")
        assert found.ids == whole_ids(tokenizer_of(family), text, specials=True)
        assert found.keys.tolist() == naive_keys(found.ids, 16, "salt")


def test_ids_are_hashed_as_text_is() -> None:
    found = LLAMA.encode_prompt(TEXT, "s", ("a", "p"))
    ids = array("I", found.ids)
    assert LLAMA.hash_ids(ids, "s", ("a", "p")) == found.keys
    assert LLAMA.hash_ids(ids.tolist(), "s", ("a", "p")) == found.keys
    again = LLAMA.encode_ids(ids.tolist(), "s", ("a", "p"))
    assert (again.ids, again.n, again.keys) == (found.ids, found.n, found.keys)


def test_a_waiting_caller_can_encode_elsewhere() -> None:
    pending = load().open_prompt(TEXT * 5)
    assert pending.needs_thread
    pending.encode()
    assert LLAMA.finish(pending).ids == whole_ids(tokenizer_of("llama3"), TEXT * 5, specials=True)


def test_the_configured_rule_for_bos_and_eos_wins() -> None:
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "add_bos_token": True, "add_eos_token": True}
    model = load(tokenizer_config=config)
    assert list(array("I", model.encode_prompt("a").ids))[::2] == [0, 1]
    config |= {"add_bos_token": False, "add_eos_token": False}
    assert load(tokenizer_config=config).encode_prompt("a").n == 1


def test_special_tokens_that_only_the_config_has_are_added() -> None:
    config = {
        "eos_token": "<|new_end|>",
        "added_tokens_decoder": {
            "900": {
                "content": "<tool>",
                "special": False,
                "normalized": False,
                "lstrip": False,
                "rstrip": False,
                "single_word": False,
            }
        },
        "extra_special_tokens": ["<extra>", {"content": "<|im_end|>"}],
    }
    model = load(tokenizer_config=config)
    size = tokenizer_of("llama3").get_vocab_size()
    assert list(array("I", model.encode_prompt("<tool><|new_end|><extra>").ids))[1:] == [size, size + 1, size + 2]
    assert model.vocab_size == size + 3


def test_a_tokenizer_that_does_more_than_put_ids_around_is_used_whole(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("penstock_router.text.model.special_tokens_around", lambda tokenizer: None)
    tokenizer, model = tokenizer_of("llama3"), load()
    assert [r.levelno for r in caplog.records if "tokenized whole" in r.message] == [logging.WARNING]
    found = model.encode_prompt(TEXT)
    assert found.ids == whole_ids(tokenizer, TEXT, specials=True)
    assert found.keys.tolist() == naive_keys(found.ids, 16)
    assert model.whole_prompts == 1
    with pytest.raises(TextRefused):
        model.encode_prompt("\ud800")


def test_a_tokenizer_without_safe_cuts_says_so_and_is_used_whole(caplog: pytest.LogCaptureFixture) -> None:
    model = load("legacy")
    assert "no safe cut" in caplog.text
    assert model.cut_classes == ""
    for _ in range(2):
        assert model.encode_prompt(TEXT).ids == whole_ids(tokenizer_of("legacy"), TEXT, specials=True)


def test_truncation_and_padding_of_the_file_are_ignored() -> None:
    tokenizer = tokenizer_of("llama3")
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=50)
    model = load(tokenizer=tokenizer.to_str().encode())
    assert model.encode_prompt("a b").n == 3
    assert model.encode_prompt(TEXT).n > 400


def test_generation_defaults_are_what_the_models_owner_has_set() -> None:
    given = {"temperature": 0.6, "top_p": 0.9, "top_k": None, "max_new_tokens": 64, "do_sample": True, "eos_token_id": [1, 2]}
    assert load(generation_config=given).generation_defaults == {"temperature": 0.6, "top_p": 0.9, "max_tokens": 64}
    assert load().generation_defaults == {}
    assert load(generation_config={"top_k": -1}).generation_defaults == {"top_k": 0}


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "length"),
    [
        ({"max_position_embeddings": 4096}, {}, 4096),
        ({"n_positions": 1024, "seq_length": 512}, {}, 512),
        ({"text_config": {"max_position_embeddings": 8192}}, {}, 8192),
        ({"max_position_embeddings": 4096}, {"model_max_length": 2048}, 2048),
        ({"max_position_embeddings": 4096}, {"model_max_length": 1e30}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, {}, 8192),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, {}, 4096),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, {}, 131072),
        ({}, {}, 2048),
    ],
)
def test_the_context_is_as_long_as_vllm_takes_it(config: dict[str, Any], tokenizer_config: dict[str, Any], length: int) -> None:
    assert facts.max_model_len(config, tokenizer_config) == length


def test_the_files_tell_the_length_of_the_context() -> None:
    assert load(config={"max_position_embeddings": 77}).max_model_len == 77


def test_what_the_engine_says_wins_over_the_files() -> None:
    model = TextModel.load(
        files(config={"max_position_embeddings": 4096, "vocab_size": 9999}), 16, ROOT, max_model_len=64, vocab_size=2000
    )
    assert (model.max_model_len, model.vocab_size) == (64, 2000)
    assert load(config={"vocab_size": 9999}).vocab_size == 9999


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("tokenizer", b"{", "not a tokenizer"),
        ("tokenizer", b"\xff", "not a tokenizer"),
        ("tokenizer", {"version": "1.0"}, "not a tokenizer"),
        ("tokenizer_config", b"[", "not JSON"),
        ("tokenizer_config", [], "not a JSON object"),
        ("tokenizer_config", {"chat_template": "{% if %}"}, "not a chat template"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": 1}}, "added_tokens_decoder"),
        ("tokenizer_config", {"added_tokens_decoder": {"1": {"content": 3}}}, "added_tokens_decoder"),
        ("generation_config", {"temperature": "hot"}, "temperature must be a number"),
        ("config", {"vocab_size": "many"}, "vocab_size must be"),
        ("config", {"max_position_embeddings": -1}, "max_position_embeddings must be"),
    ],
)
def test_a_malformed_file_is_named(name: str, value: object, reason: str) -> None:
    with pytest.raises(ModelFilesError, match=reason) as caught:
        load(**{name: value})
    assert caught.value.file == f"{name}.json"


def test_a_model_without_a_fast_tokenizer_is_refused() -> None:
    with pytest.raises(ModelFilesError, match=r"tokenizer\.json: missing"):
        TextModel.load({}, 16, ROOT)


def test_a_template_that_is_no_text_is_named() -> None:
    with pytest.raises(ModelFilesError, match=r"chat_template\.jinja: not UTF-8"):
        TextModel.load({**files(), "chat_template.jinja": b"\xff"}, 16, ROOT)


def test_a_model_without_a_template_answers_prompts_only() -> None:
    model = load(tokenizer_config={})
    assert model.encode_prompt("a").n == 2
    with pytest.raises(TemplateRefused, match="no chat template"):
        model.encode_chat([{"role": "user", "content": "a"}])


def test_a_lone_surrogate_is_refused_wherever_it_stands() -> None:
    for text in ("\ud800", TEXT + "\udc00", "\udc00" + TEXT):
        with pytest.raises(TextRefused, match="surrogate"):
            LLAMA.encode_prompt(text)
        with pytest.raises(TextRefused, match="surrogate"):
            LLAMA.encode_chat([{"role": "user", "content": text}])


def test_special_tokens_in_a_users_text_are_read_as_the_library_reads_them() -> None:
    text = "ignore <|im_end|> this " * 40
    assert LLAMA.encode_prompt(text).ids == whole_ids(tokenizer_of("llama3"), text, specials=True)


def test_a_template_that_adds_more_than_ids_around_is_noticed() -> None:
    tokenizer = tokenizer_of("llama3")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|im_end|> $A", special_tokens=[("<|im_end|>", 1)])
    assert special_tokens_around(tokenizer) is None


def test_special_tokens_around_are_what_the_tokenizer_adds() -> None:
    around = special_tokens_around(Tokenizer.from_buffer(tokenizer_json("bert")))
    assert around == (array("I", [1]).tobytes(), array("I", [2]).tobytes())
    assert special_tokens_around(tokenizer_of("gpt2")) == (b"", b"")
