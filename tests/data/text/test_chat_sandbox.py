"""Chat templates that would run for hours or fill the memory, and those that do as in stock."""

import time

import pytest
from language_sets import byte_tokenizer, talk
from transformers.utils.chat_template_utils import render_jinja_template

from data.config import DataConfig
from data.errors import TokenizerError
from data.text import chat_sandbox
from data.text.chat_sandbox import TemplateRunsAwayError, bounded, compiled
from data.text.language import encode_language

LOOP, END = "{% for i in range(99999) %}", "{% endfor %}"
TWICE = "{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
GROWN = "{% set s = namespace(x=FIRST) %}" + LOOP + "{% set s.x = SUM %}" + END
ENDLESS = {
    "loops": LOOP * 3 + END * 3,
    "a filtered loop": LOOP + "{% for j in range(99999) if j < 0 %}" + END * 2,
    "a macro": "{% macro f(n) %}" + TWICE + "{% endmacro %}{{ f(60) }}",
    "a filter": LOOP + "{{ range(99999) | map('upper') | list | length }}" + END,
    "a recursive loop": "{% for i in [1, 2] recursive %}"
    + LOOP * 2
    + END * 2
    + "{{ loop([]) }}"
    + END,
}
LARGE = {
    "a power": "{{ 10 ** 9999999999 }}",
    "a product": "{{ 'a' * 9999999 * 9999 }}",
    "a long number": "{{ 'a' | center(99999999999) }}",
    "a sum": GROWN.replace("FIRST", "'aa'").replace("SUM", "s.x + s.x"),
    "a doubled text": GROWN.replace("FIRST", "'aa'").replace("SUM", "s.x ~ s.x"),
    "a list": GROWN.replace("FIRST", "[1]").replace("SUM", "s.x + s.x"),
    "a joined list": "{{ (['a' * 999999] * 999) | join('a' * 9999999) }}",
    "a replaced text": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "its output": LOOP + "{{ 'a' * 99999 }}" + END,
    "a block": "{% set x %}" + LOOP + "{{ 'a' * 99999 }}" + END + "{% endset %}",
}
SOUND = [
    "{% for m in messages if m.role != 'system' %}{{ loop.index ~ m.role + m.content | trim }}"
    + END,
    "{% macro f(x, n=2) %}{{ x * n }}{% endmacro %}"
    "{% for m in messages %}{{ f(m['content'][:3]) }}" + END,
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% if loop.first %}{% continue %}{% endif %}{{ '%03d' | format(ns.n) }}{{ m | tojson }}" + END,
    "{{ 4 * 2 ** 3 - 1 }}{{ date_string }}{{ -7 // 2 }}{{ 2 ** -1 }}{{ [0] * 3 }}{{ 1.5 * 2 }}",
    "{% macro g() %}<{{ caller('a') }}>{% endmacro %}"
    "{% call(x) g() %}{{ x ~ bos_token }}{% endcall %}",
    "{% set x | upper %}{{ messages[0].content }}{% endset %}"
    "{% filter lower %}{{ x }}{% endfilter %}",
    "{% generation %}{{ messages[-1].content.split(' ') | map('upper') | join('-') }}"
    "{% endgeneration %}",
    "{{ messages | map(attribute='content') | select | list | length }}{{ range(3) | list }}"
    "{{ raise_exception('no') if tools is not none }}{{ add_generation_prompt }}{{ dict(a=1) }}",
    "{% for i in [[1, [2]], 3] recursive %}{{ loop(i) if i is iterable else i }}" + END,
    "{{ raise_exception('no') }}",
    "{% for %}",
]


def written(template, **given):
    with bounded():
        return compiled(template).render(**given)


def refused(template):
    begun = time.thread_time()
    with pytest.raises(TemplateRunsAwayError) as caught:
        written(template, messages=[])
    assert time.thread_time() - begun < 5
    return str(caught.value)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_is_stopped(name, monkeypatch):
    monkeypatch.setattr(chat_sandbox, "MOST_SECONDS", 0.2)
    assert "runs for more than 0.2 seconds" in refused(ENDLESS[name])


@pytest.mark.parametrize("name", LARGE)
def test_a_template_that_fills_the_memory_is_stopped_before(name):
    assert "the chat template " in refused(LARGE[name])


@pytest.mark.parametrize("template", SOUND)
def test_other_templates_write_what_they_write_in_transformers(template):
    messages = [
        {"role": "system", "content": "Be kind. "},
        {"role": "user", "content": "a question, {with} \"marks\""},
        {"role": "assistant", "content": "an answer"},
    ]  # fmt: skip
    given = {"add_generation_prompt": True, "date_string": "today", "bos_token": "<s>"}
    own = given | {"messages": messages, "tools": None, "documents": None}
    try:
        [stock], _ = render_jinja_template([messages], chat_template=template, **given)
    except Exception as error:
        with pytest.raises(type(error)):
            written(template, **own)
    else:
        assert written(template, **own) == stock != ""


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_the_template_is_named_by_its_file(name, tmp_path):
    template = LARGE["a power"]
    tokenizer = byte_tokenizer(tmp_path, chat_template=template)
    if name != "tokenizer_config.json":
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
        (tmp_path / name).write_text(template)
    with pytest.raises(TokenizerError, match=rf"{name}: the chat template makes 10") as caught:
        encode_language([talk("q", "a")], tokenizer, DataConfig(max_bad_rows=5))
    assert caught.value.exit_code == 4
