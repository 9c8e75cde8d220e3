"""A row {column: value} -> Conversation or Document, with every value checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data.kinds import FUNCTION, KINDS
from data.readers.columns import Found
from data.readers.messages import REMEDY, is_flag, parsed, refuse_flag, tools_text, turns_of
from data.readers.reading import Reading, RowFault, checked_text, refuse
from data.records import CodeSample, Conversation, Document, Turn

QUESTION = (
    "Perform static application security testing on the following function. Is it vulnerable?"
    " Answer yes or no."
)
_ANSWERS = ("no", "yes")  # by target

# JSON text of messages, as tables hold them
_MESSAGES = re.compile(r'\s*\[\s*\{\s*"(?:role|from|content|value)"\s*:')

_Row = Mapping[str, Any]


def document(
    row: _Row, found: Found, record_id: str, origin: str, reading: Reading
) -> list[Document]:
    """The text of a row."""
    (column,) = found.needed.values()
    text = checked_text(row[column], column)
    made = Document(record_id, text, origin, reading.name, found.kind)
    return [made] if reading.keeps(text) else []


def turns(
    row: _Row, found: Found, record_id: str, origin: str, reading: Reading
) -> list[Conversation]:
    """The user's fields in their order, then the answer; a field may be a list of messages."""
    kind, said = KINDS[found.kind], _history(row, found.aside.get("history"))
    columns = {**found.needed, **found.optional}
    holds_messages = False
    for name in (*(n for n in columns if n != kind.answer), kind.answer):
        value, is_answer = row[columns[name]], name == kind.answer
        if isinstance(value, list) or (isinstance(value, str) and _MESSAGES.match(value)):
            messages, _ = turns_of(value, columns[name], reading, origin, _tools(row, found))
            said += [_learned_if(turn, is_answer) for turn in messages]
            holds_messages = True
            continue
        if name not in kind.may_be_blank and not is_answer:
            text = _said(value, columns[name])
        else:
            text = "" if value is None and not is_answer else checked_text(value, columns[name])
        if is_answer:
            thought = _aside_text(row, found, "reasoning")
            said.append(Turn("assistant", text, reasoning=thought))
        elif text.strip():
            said.append(Turn("user", text))
    called = "chat" if holds_messages else found.kind
    if holds_messages:
        said = ordered(said, columns[kind.answer], reading)
    return _kept(
        row, found, said, Conversation(record_id, (), origin, reading.name, called), reading
    )


def messages(
    row: _Row, found: Found, record_id: str, origin: str, reading: Reading
) -> list[Conversation]:
    """The messages of a row."""
    (column,) = found.needed.values()
    said, tools = turns_of(row[column], column, reading, origin, _tools(row, found))
    if flags := found.aside.get("loss_mask"):
        said = _flagged(said, row[flags], flags)
    made = Conversation(record_id, (), origin, reading.name, found.kind, tools)
    return _kept(row, found, ordered(said, column, reading), made, reading)


def sample_conversation(sample: CodeSample, source: str) -> Conversation:
    """A labelled function as a question and its answer."""
    turns = (
        Turn("user", QUESTION),
        Turn("user", sample.code),
        Turn("assistant", _ANSWERS[sample.target]),
    )
    return Conversation(sample.id, turns, sample.origin, source, FUNCTION)


def _kept(
    row: _Row, found: Found, said: Sequence[Turn], made: Conversation, reading: Reading
) -> list[Conversation]:
    """The record with what stands in columns beside it; a blank answer teaches nothing."""
    reading.unread(row, found.signals, made.origin)
    if not said[-1].text.strip():
        reading.facts.num_empty += 1
        return []
    if reading.config.supervise != "all" and not any(_is_learned(turn) for turn in said):
        raise RowFault(f"every answer says that it is not learned; {REMEDY}")
    system = _aside_text(row, found, "system")
    if system.strip() and said[0] != Turn("system", system):
        if said[0].role == "system":
            system, said = f"{system}\n\n{said[0].content}", said[1:]
        said = [Turn("system", system), *said]
    stated = _tools(row, found)
    if made.tools and stated and made.tools != stated:
        column = found.aside["tools"]
        raise RowFault(f"{column!r} holds other tools than the messages do; keep one of them")
    record = replace(made, turns=tuple(said), tools=stated or made.tools)
    if "\0" in record.text:
        reading.facts.num_nul += 1
    return [record]


def _is_learned(turn: Turn) -> bool:
    return turn.role == "assistant" and turn.is_learned


def _learned_if(turn: Turn, is_learned: bool) -> Turn:
    return replace(turn, is_learned=turn.is_learned and (is_learned or turn.role != "assistant"))


def _aside_text(row: _Row, found: Found, name: str) -> str:
    column = found.aside.get(name)
    return "" if column is None or row[column] is None else checked_text(row[column], column)


def _tools(row: _Row, found: Found) -> str:
    column = found.aside.get("tools")
    return "" if column is None else tools_text(row[column], column)


def _history(row: _Row, column: str | None) -> list[Turn]:
    """Alpaca's [[question, answer], ...]; its answers are learned, too."""
    value = row[column] if column else None
    if isinstance(value, str):
        value = parsed(value, str(column)) if value.strip() else None
    said = []
    for number, pair in enumerate(value or [], 1):
        where = f"{column}[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            refuse(where, pair, "a question and its answer")
        said += [Turn("user", _said(pair[0], where)), Turn("assistant", _said(pair[1], where))]
    return said


def _flagged(said: Sequence[Turn], value: Any, column: str) -> list[Turn]:
    """Turns of which a column beside them says which are learned."""
    flags = parsed(value, column) if isinstance(value, str) else value
    if flags is None:
        return list(said)
    if not isinstance(flags, list) or len(flags) != len(said):
        refuse(column, value, f"a list of {len(said)} flags, one a message")
    for flag in flags:
        if not is_flag(flag):
            refuse_flag(column, flag)
    return [_learned_if(turn, bool(flag)) for turn, flag in zip(said, flags, strict=True)]


def ordered(said: Sequence[Turn], name: str, reading: Reading) -> list[Turn]:
    """Turns up to the last answer; nothing in what follows it is learned.

    An answer before the first question is a greeting: context.
    """
    said = _joined([turn for turn in said if turn.text.strip() or turn.role == "tool"], reading)
    answers = [n for n, turn in enumerate(said) if turn.role == "assistant"]
    if not answers:
        raise RowFault(f"{name!r} has no assistant message among {len(said)}; {REMEDY}")
    first = next((n for n, turn in enumerate(said) if turn.role == "user"), len(said))
    if first > answers[-1]:
        raise RowFault(f"{name!r} has no user message before an answer; {REMEDY}")
    if answers[0] < first:
        reading.facts.warn(f"{reading.name}: answers before the first question are context")
    if answers[-1] + 1 < len(said):
        reading.facts.warn(f"{reading.name}: messages after the last answer are left out")
    greetings = [_learned_if(turn, False) for turn in said[:first]]
    return [*greetings, *said[first : answers[-1] + 1]]


def _joined(said: Sequence[Turn], reading: Reading) -> list[Turn]:
    """Messages of one role in a row as one; what several tools give back stays apart."""
    joined: list[Turn] = []
    for turn in said:
        if joined and _is_one(joined[-1], turn):
            last = joined[-1]
            text = "\n\n".join(filter(None, [last.content, turn.content]))
            joined[-1] = replace(last, content=text, calls=(*last.calls, *turn.calls))
            reading.facts.warn(
                f"{reading.name}: messages of one role in a row are joined by a blank line"
            )
        else:
            joined.append(turn)
    return joined


def _is_one(first: Turn, second: Turn) -> bool:
    """Whether two messages are one: one has no place for a thought or a text after a call."""
    if first.role != second.role or first.role == "tool" or second.reasoning:
        return False
    return first.is_learned == second.is_learned and not (first.calls and second.content)


def _said(value: Any, name: str) -> str:
    """Text that is not blank."""
    text = checked_text(value, name)
    if not text or text.isspace():
        raise RowFault(f"{name!r} is blank; {REMEDY}")
    return text
