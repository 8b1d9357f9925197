import json
from datetime import datetime

import pytest

from penstock_router.text.errors import ModelFilesError, TemplateRefused
from penstock_router.text.template import ChatTemplate, choose_source

NOW = datetime(2026, 7, 26, 9, 30)
CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
HI = [{"role": "user", "content": "hi"}]
TALK = [
    {"role": "system", "content": "Be brief."},
    *HI,
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "<b>?"},
]


def render(source: str, messages: list[dict[str, str]] = HI, **tokens: str) -> str:
    return ChatTemplate(source, "chat_template.jinja", tokens, lambda: NOW).render(messages)


def test_a_chat_is_rendered_up_to_the_answer() -> None:
    assert render(CHATML, TALK) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\n<b>?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_blocks_leave_no_white_space_of_their_own() -> None:
    assert render("a\n  {% if true %}\nb\n  {% endif %}\nc\n") == "a\nb\nc"


def test_templates_know_special_tokens_and_that_there_are_no_tools() -> None:
    source = "{{ bos_token }}{{ tools is none }}{{ documents is none }}{{ unk_token }}{{ tools is defined }}"
    assert render(source, bos_token="<s>") == "<s>TrueTrueTrue"


def test_templates_print_the_date_of_the_clock_they_were_given() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2026"


def test_tojson_escapes_no_html_and_keeps_unicode() -> None:
    assert render("{{ messages[0] | tojson }}", [{"role": "user", "content": "<é>"}]) == '{"role": "user", "content": "<é>"}'
    assert render("{{ {'a': 1} | tojson(indent=1) }}") == '{\n "a": 1\n}'


def test_loop_controls_and_generation_blocks_work() -> None:
    assert render("{% for m in 'abc' %}{% if m == 'b' %}{% break %}{% endif %}{{ m }}{% endfor %}") == "a"
    source = "{% for m in messages %}{% generation %}{% set x = 1 %}[{{ m.content }}]{% endgeneration %}{{ x }}{% endfor %}"
    assert render(source) == "[hi]"


def test_a_template_that_raises_refuses_with_its_own_words() -> None:
    with pytest.raises(TemplateRefused) as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.message == "roles must alternate"


@pytest.mark.parametrize(
    "source", ["{{ 'SECRET' + none }}", "{{ messages[0].content.SECRET.x }}", "{{ 1 / 0 }}", "{{ messages[9].role }}"]
)
def test_a_template_that_fails_quotes_nothing(source: str) -> None:
    with pytest.raises(TemplateRefused) as caught:
        render(source, [{"role": "user", "content": "SECRET"}])
    assert "SECRET" not in caught.value.message
    assert "fails on these messages" in caught.value.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(10000000) %}{% endfor %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(TemplateRefused):
        render(source)


def test_what_is_no_template_names_its_file() -> None:
    with pytest.raises(ModelFilesError) as caught:
        render("{% for %}")
    assert caught.value.file == "chat_template.jinja"


LOOPS = "{% for part in message.content %}({{ part.type }} {{ part.text }}){% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        f"{{% for message in messages %}}{LOOPS}{{% endfor %}}",
        f"{{% set turns = messages %}}{{% for message in turns %}}{LOOPS}{{% endfor %}}",
        f"{{% set turns = messages %}}{{% for message in turns[0:] %}}{LOOPS}{{% endfor %}}",
        "{% for message in messages %}{% set content = message['content'] %}"
        "{% for part in content %}({{ part.type }} {{ part.text }}){% endfor %}{% endfor %}",
        "{% macro show(c) %}{% for part in c %}({{ part.type }} {{ part.text }}){% endfor %}{% endmacro %}"
        "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
        "{% macro show(c) %}{% for part in c %}({{ part.type }} {{ part.text }}){% endfor %}{% endmacro %}"
        "{% for m in messages %}{{ show(c=m.content) }}{% endfor %}",
    ],
)
def test_a_template_that_loops_over_content_gets_parts(source: str) -> None:
    assert render(source) == "(text hi)"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{% if m.content is string %}{{ m.content | upper }}{% endif %}{% endfor %}",
        "{% for c in 'x' %}{% endfor %}{{ messages[0]['content'] | upper }}",
        "{% macro f(content) %}{% for c in content %}{{ c | upper }}{% endfor %}{% endmacro %}{{ f('hi') }}",
    ],
)
def test_a_template_that_does_not_gets_strings(source: str) -> None:
    assert render(source) == "HI"


def test_the_file_wins_over_the_config() -> None:
    assert choose_source({"chat_template": "a"}, "b") == ("b", "chat_template.jinja")
    assert choose_source({"chat_template": "a"}, None) == ("a", "tokenizer_config.json")
    assert choose_source({}, None) is None


def test_the_default_of_named_templates_is_used() -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert choose_source({"chat_template": named}, None) == ("d", "tokenizer_config.json")


@pytest.mark.parametrize("value", [[{"name": "tool_use", "template": "t"}], [{"name": "x"}], ["x"], 3, {"rag": "r"}])
def test_a_chat_template_of_another_form_is_the_models_fault(value: object) -> None:
    with pytest.raises(ModelFilesError, match=r"tokenizer_config\.json: chat_template"):
        choose_source(json.loads(json.dumps({"chat_template": value})), None)
