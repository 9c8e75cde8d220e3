"""The user's text in a terminal, Markdown, CSV and TensorBoard, read back by other libraries."""

import csv
import html
import io
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markupsafe import Markup
from rich.console import Console

from data.text.escaping import (
    csv_value,
    escaped,
    markdown,
    markdown_block,
    markdown_code,
    print_text,
    styled,
    tag,
)

HOSTILE = (
    "\x1b]0;title\a", "\x1b[2J", "\x9b31m", "a\rb", "\u202etxt.exe", "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>", "[a](javascript:b)", "![a](http://b)", "[a]: http://b", "**b**",
    "_b_", "`b`", "``", "a|b", "\\|", "\\", "&lt;", "&#60;", "# a", "- a", "1. a", "+ a", "~~a~~",
    "<http://a.b>", "***", "a_b", "[0.1, 0.2]", "=1+1", "[red]a[/red]", "| - | - |", "> a", "===",
    "---", "\ud800", "    a", "\t=a",
)  # fmt: skip
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(alphabet="ab <>&;#*_`[]()!|\\~+-=1.:\n\x1b\"'"))
PAGE = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def on_one_line(text):
    return " ".join(escaped(text).split())


@pytest.mark.parametrize("text", HOSTILE)
def test_no_control_character_reaches_a_terminal_and_markup_is_text(text):
    stream = io.StringIO()
    print_text(Console(file=stream, force_terminal=True, width=40), [text])
    printed = stream.getvalue().rstrip("\n")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", printed)
    if text.isprintable():
        assert printed == text


def test_colours_and_bars_of_ours_stay_and_titles_and_clipboards_do_not():
    assert styled("\x1b[1;31mred\x1b[0m\r\x1b[2K") == "\x1b[1;31mred\x1b[0m\r\x1b[2K"
    assert styled("\x1b]52;c;eA==\a\x9b31m") == r"\x1b]52;c;eA==\x07\x9b31m"


@given(TEXTS)
@settings(max_examples=300)
@example("a\\|b")
def test_a_value_in_a_sentence_of_markdown_is_read_as_the_text_it_is(text):
    shown = PAGE.render(f"x {markdown(text)}")
    assert shown.startswith("<p>x")
    assert "<" not in shown.removeprefix("<p>").removesuffix("</p>\n")
    assert html.unescape(shown)[3:-5].split() == f"x {on_one_line(text)}".split()


@given(TEXTS)
@settings(max_examples=300)
@example("a\\|b")
def test_a_value_in_a_table_of_markdown_stays_in_its_cell(text):
    rendered = PAGE.render(f"| a | b |\n| - | - |\n| {markdown(text)} | {markdown_code(text)} |")
    cells = re.findall(r"<td>(.*?)</td>", rendered)
    assert len(cells) == 2
    assert "<" not in cells[0]
    assert html.unescape(cells[0]) == on_one_line(text)
    assert re.fullmatch(r"<code>[^<]*</code>|``|` `", cells[1])


@given(st.sampled_from([text for text in HOSTILE if "\n" not in text]))
def test_a_value_that_begins_a_line_begins_no_heading_list_or_block(text):
    assert PAGE.render(f"{markdown(text)}").startswith("<p>")
    assert PAGE.render(f"- {markdown(text)}").startswith("<ul>\n<li>")
    assert re.fullmatch(r"<ul>\n<li>[^<]*</li>\n</ul>\n", PAGE.render(f"- {markdown(text)}"))


@given(st.sampled_from(HOSTILE))
def test_lines_of_a_block_are_code(text):
    shown = PAGE.render(f"a\n\n{markdown_block(f'{text}{chr(10)}x')}")
    assert re.fullmatch(r"<p>a</p>\n<pre><code>[^<]*</code></pre>\n", shown)


def test_numbers_and_parts_of_the_page_are_written_as_they_are():
    assert (markdown(1234567), markdown("lora_r"), markdown("[0.1, 0.2]")) == (
        "1,234,567", "lora_r", "[0.1, 0.2]",
    )  # fmt: skip
    assert markdown(Markup("**b**")) == "**b**"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=a|' /C x'!A0"])
def test_no_text_of_a_csv_begins_a_formula_and_numbers_stay(text):
    stream = io.StringIO()
    csv.writer(stream).writerow([csv_value(text), csv_value(-1.5), csv_value("plain")])
    [[first, *others]] = csv.reader(io.StringIO(stream.getvalue()))
    assert first.startswith("'")
    assert others == ["-1.5", "plain"]


def test_the_name_of_a_curve_is_letters_and_a_few_signs():
    assert tag("valid/../a<b>\x1b[1m|é.txt") == "valid/../a_b___1m_é.txt"
