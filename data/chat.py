"""Conversations through the tokenizer's own chat template, in transformers' sandbox."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.records import Conversation, Turn

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_ADVICE = "; use another template: data.template=question_answer or alpaca"


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered record, tokenised alone.

    Attributes:
        text: As the model reads it.
        supervised: Its tokens are targets.
        ends: The end token follows, supervised as the text is.
    """

    text: str
    supervised: bool
    ends: bool = False


def own_template(folder: Path) -> tuple[str | None, dict[str, str]]:
    """The chat template beside a tokenizer, if it has one, and the special tokens it may name.

    Raises:
        DataError: The files are no JSON, or hold several templates and none called default.
    """
    path, alone = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}; save the tokenizer again") from error
    texts = {name: _text(config.get(name)) for name in _SPECIAL}
    special = {name: text for name, text in texts.items() if text is not None}
    if alone.is_file():
        return alone.read_text(encoding="utf-8"), special
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {str(each.get("name")): each.get("template") for each in template}
        if "default" not in named:
            raise DataError(
                f"{path}: chat templates {sorted(named)}, none called default; keep one, or set"
                " data.template"
            )
        template = named["default"]
    return (template if isinstance(template, str) else None), special


def chat_segments(
    record: Conversation, template: str, special_tokens: Mapping[str, str]
) -> list[Segment]:
    """Prompt and answer of every assistant turn, found by rendering ever more turns.

    An answer's span holds what the template writes after it up to the end-of-turn marker; blanks
    behind the marker are context, for generation stops at it. Where a template writes no marker the
    end token follows.

    Raises:
        DataError: The template fails; it writes today's date; or the text of the first turns is
            not how the text of all turns begins, so that no span can be told.
    """
    if "strftime_now" in template and "date_string" not in template:
        raise DataError(f"{record.origin}: the chat template writes today's date{_ADVICE}")
    turns = _merged(record.turns)
    whole = _rendered(record, turns, template, special_tokens, False)
    segments, begin = [], 0
    for place, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before = _rendered(record, turns[:place], template, special_tokens, True)
        upto = _rendered(record, turns[: place + 1], template, special_tokens, False)
        for text, what in ((before, "before"), (upto, "up to")):
            _refuse_other_beginning(record, whole, text, place, what)
        answer = upto[len(before) :]
        end, ends = _answer_end(answer, turn, record.origin)
        segments += [Segment(whole[begin : len(before)], supervised=False)]
        segments += [Segment(answer[:end], supervised=turn.is_learned, ends=ends)]
        begin = len(before) + end
    return [*segments, Segment(whole[begin:], supervised=False)]


def _answer_end(answer: str, turn: Turn, origin: str) -> tuple[int, bool]:
    """Where the span of an answer ends, and whether the end token has to follow."""
    content = turn.content.strip()
    place = answer.find(content)
    if place < 0:
        raise DataError(
            f"{origin}: the chat template changes the answer {content[:40]!r} to"
            f" {answer[:40]!r}{_ADVICE}"
        )
    if not answer[place + len(content) :].strip():
        return len(answer), True
    return len(answer.rstrip()), False


def _refuse_other_beginning(
    record: Conversation, whole: str, text: str, place: int, what: str
) -> None:
    if whole.startswith(text):
        return
    same = next(
        (n for n, (a, b) in enumerate(zip(whole, text, strict=False)) if a != b),
        min(len(whole), len(text)),
    )
    raise DataError(
        f"{record.origin}: the chat template writes the turns {what} turn {place + 1} otherwise"
        f" alone ({text[same : same + 40]!r}) than in the whole ({whole[same : same + 40]!r}), so"
        f" that no span can be told{_ADVICE}"
    )


def _rendered(
    record: Conversation,
    turns: Sequence[Turn],
    template: str,
    special_tokens: Mapping[str, str],
    asks: bool,
) -> str:
    """The text of turns; with `asks`, up to where the next answer begins."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            add_generation_prompt=asks,
            date_string="26 Jul 2024",  # what Llama's template writes without a clock
            **special_tokens,
        )
    except (TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{record.origin}: the chat template fails: {error}{_ADVICE}") from error
    return str(rendered[0])


def _merged(turns: Sequence[Turn]) -> list[Turn]:
    """An instruction and its input as one turn."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and turn.role == merged[-1].role == "user":
            merged[-1] = Turn("user", f"{merged[-1].content}\n{turn.content}")
        else:
            merged.append(turn)
    return merged


def _text(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
