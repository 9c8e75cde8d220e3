"""Conversations through the tokenizer's own chat template, in transformers' sandbox, bounded."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError, TokenizerError, file_text, parsing
from data.records import Conversation, Turn
from data.text.chat_sandbox import TemplateRunsAwayError, bounded, compiled
from data.text.tokenizer import companion, special_tokens

_STAND_IN = Turn("assistant", "\ue000\ue001\ue000")  # private characters, which no text holds
_SAVE = "save the tokenizer again"
_MOST_BYTES = 1 << 20  # of a template; the longest have 20 KB
_ADVICE = "use another template: data.template=question_answer or alpaca"


@dataclass(frozen=True)
class Span:
    """A stretch of a rendered record that is tokenised alone.

    Attributes:
        text: As the model reads it.
        supervised: Its tokens are targets.
        ends: The end token follows, supervised as the text is.
        plain: What reads like a special token in it is text.
    """

    text: str
    supervised: bool
    ends: bool = False
    plain: bool = False


class RecordRefused(DataError):
    """A record that the chat template cannot write, or whose spans it does not show."""


def own_template(folder: Path) -> tuple[str | None, dict[str, str]]:
    """The chat template beside a tokenizer, if it has one, and the special tokens it may name.

    Raises:
        TokenizerError: The files are not JSON, hold something else under these names, or hold
            several templates and none called default.
    """
    path, alone = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    special = special_tokens(folder)
    if alone.is_file():
        return file_text(alone, TokenizerError, _SAVE, _MOST_BYTES), special
    template = companion(path).get("chat_template")
    if isinstance(template, list) and all(isinstance(each, dict) for each in template):
        named = {str(each.get("name")): each.get("template") for each in template}
        if "default" not in named:
            raise TokenizerError(
                f"{path}: chat templates {sorted(named)}, none called default; keep one, or set"
                " data.template"
            )
        template = named["default"]
    if template is not None and not isinstance(template, str):
        raise TokenizerError(
            f"{path}: chat_template must be text, or a list of objects with name and template,"
            f" found {str(template)[:40]!r}; {_SAVE}"
        )
    return template, special


@contextmanager
def naming_template(folder: Path) -> Iterator[None]:
    """Around rendering: a template that runs away is named by its file.

    Raises:
        TokenizerError: It does.
    """
    try:
        yield
    except TemplateRunsAwayError as error:
        alone = folder / "chat_template.jinja"
        file = alone if alone.is_file() else folder / "tokenizer_config.json"
        raise TokenizerError(f"{file}: {error}; {_ADVICE}") from error


def chat_spans(
    record: Conversation,
    template: str,
    special_tokens: Mapping[str, str],
    markers: Collection[str] = (),
) -> list[Span]:
    """Prompt and answer of every assistant turn, found by rendering a stand-in for the answer.

    An answer's span ends with the first marker that the template writes after it, for generation
    stops there; without one, with the text after it; without text, the end token follows. It begins
    where the generation prompt ends. Where the template has none, the answer's header is context.

    Args:
        record: Turns are rendered unchanged.
        template: In jinja.
        special_tokens: What it may name, such as {"bos_token": "<s>"}.
        markers: Tokens of the tokenizer that can end a turn.

    Raises:
        RecordRefused: The template fails; or the text of the first turns is not how the text of all
            turns begins, so that no span is certain.
        DataError: It writes today's date.
    """
    if "strftime_now" in template and "date_string" not in template:
        raise DataError(f"{record.origin}: the chat template writes today's date; {_ADVICE}")
    turns = _merged(record.turns)

    def rendered(turns: Sequence[Turn], asks: bool = False) -> str:
        return _rendered(record, turns, template, special_tokens, asks)

    whole = rendered(turns)
    spans, begin = [], 0
    for place, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before = rendered(turns[:place], asks=True)
        header, _, tail = rendered([*turns[:place], _STAND_IN]).partition(_STAND_IN.content)
        for text, of, what in ((before, header, "before"), (header, whole, "up to")):
            _refuse_other_beginning(record, of, text, place, what)
        close, ends = _close(tail, markers)
        end = len(header) + len(_said(record, whole[len(header) :], turn.content, close))
        start = len(before)
        if header[start:].strip() and before == rendered(turns[:place]):
            start = len(header.rstrip(" "))  # a blank belongs to the word after it
        spans += [Span(whole[begin:start], supervised=False)]
        spans += [Span(whole[start:end], supervised=turn.is_learned, ends=ends)]
        begin = end
    return [*spans, Span(whole[begin:], supervised=False)]


def _close(tail: str, markers: Collection[str]) -> tuple[str, bool]:
    """What of the text after an answer is learned, and whether the end token has to follow."""
    found = [(tail.find(marker), -len(marker)) for marker in markers if marker in tail]
    if found:
        place, length = min(found)
        return tail[: place - length], False
    return (tail.rstrip(), False) if tail.strip() else (tail, True)


def _said(record: Conversation, text: str, content: str, close: str) -> str:
    """How a text begins: an answer, which templates may trim, and what closes it."""
    core, blanks = content.strip(), content[len(content.rstrip()) :]
    end = len(text) - len(text.lstrip()) + len(core)
    kept = [n for n in range(len(blanks) + 1) if text.startswith(blanks[:n] + close, end)]
    if not text[:end].endswith(core) or not kept:
        raise RecordRefused(
            f"{record.origin}: the chat template changes the answer {(core + close)[:40]!r} to"
            f" {text[:40]!r}; {_ADVICE}"
        )
    return text[: end + max(kept) + len(close)]


def _refuse_other_beginning(
    record: Conversation, whole: str, text: str, place: int, what: str
) -> None:
    if whole.startswith(text):
        return
    same = next(
        (n for n, (a, b) in enumerate(zip(whole, text, strict=False)) if a != b),
        min(len(whole), len(text)),
    )
    raise RecordRefused(
        f"{record.origin}: the chat template writes the turns {what} turn {place + 1} otherwise"
        f" alone ({text[same : same + 40]!r}) than in the whole ({whole[same : same + 40]!r}), so"
        f" that no span is certain; {_ADVICE}"
    )


def _rendered(
    record: Conversation,
    turns: Sequence[Turn],
    template: str,
    special_tokens: Mapping[str, str],
    asks: bool,
) -> str:
    """The text of turns; with `asks`, up to where the next answer begins."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    where = f"{record.origin}: the chat template fails"
    with parsing(where, RecordRefused, _ADVICE), bounded():
        return compiled(template).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=asks,
            date_string="26 Jul 2024",  # what Llama's template writes without a clock
            **special_tokens,
        )


def _merged(turns: Sequence[Turn]) -> list[Turn]:
    """An instruction and its input as one turn."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and turn.role == merged[-1].role == "user":
            merged[-1] = Turn("user", f"{merged[-1].content}\n{turn.content}")
        else:
            merged.append(turn)
    return merged
