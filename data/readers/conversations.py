"""Rows (place, {column: value}) -> Conversation or Document, with every value checked."""

from collections.abc import Iterator, Mapping
from typing import Any

from data.kinds import KINDS, RecordKind
from data.readers.formats import Rows
from data.readers.kinds import LanguageColumns
from data.readers.reading import (
    Place,
    Reading,
    RowFault,
    plain_text,
    quote,
    refuse,
    refuse_lone_surrogate,
)
from data.readers.rows import Ids
from data.records import CodeSample, Conversation, Document, Turn

QUESTION = (
    "Perform static application security testing on the following function. Is it vulnerable?"
    " Answer yes or no."
)
_ANSWERS = ("no", "yes")  # by target
_ROLES = {
    "system": "system", "user": "user", "assistant": "assistant",  # OpenAI
    "human": "user", "gpt": "assistant",  # ShareGPT
}  # fmt: skip
_MAX_IGNORED = 1000  # columns listed as ignored
_REMEDY = "write it, remove the row, or pass over it with data.max_bad_rows"

_Row = Mapping[str, Any]
_Found = Mapping[str, str]  # our field -> the file's column


def row_conversations(
    rows: Rows, columns: LanguageColumns, reading: Reading
) -> Iterator[Conversation | Document]:
    """Stream the records of rows; a row that is none is counted or refused.

    Raises:
        DataError: More bad rows than data.max_bad_rows, or an id that occurs twice.
    """
    facts, ids = reading.facts, Ids(reading)
    names: tuple[str, ...] | None = None
    for place, row in rows:
        facts.num_rows += 1
        try:
            if tuple(row) != names:
                names = None
                if fault := columns.missing(row):
                    raise RowFault(fault)
                names = tuple(row)
                if len(facts.ignored_fields) < _MAX_IGNORED:
                    facts.ignored_fields.update(set(row) - columns.known)
            found = columns.found
            own_id = plain_text(row[found["id"]], found["id"]) if "id" in found else ""
            record = _record(row, found, columns.kind, own_id, place, reading)
        except RowFault as fault:
            reading.bad(place, str(fault))
            continue
        if own_id:
            ids.add(own_id, place)
        if record is not None:
            yield record
    ids.refuse_duplicates()


def sample_conversation(sample: CodeSample, source: str) -> Conversation:
    """A labelled function as a question and its answer."""
    turns = (
        Turn("user", QUESTION),
        Turn("user", sample.code),
        Turn("assistant", _ANSWERS[sample.target]),
    )
    return Conversation(sample.id, turns, sample.origin, source, "vulnerability")


def _record(
    row: _Row, found: _Found, kind: str, own_id: str, place: Place, reading: Reading
) -> Conversation | Document | None:
    origin = reading.origin(place)
    holds = KINDS[kind].holds
    if holds == "text":
        text = _text(row[found["text"]], found["text"])
        return (
            Document(own_id or origin, text, origin, reading.name) if reading.keeps(text) else None
        )
    if holds == "messages":
        turns = _chat(row[found["messages"]], found["messages"], reading)
    else:
        turns = _turns(row, found, KINDS[kind])
    if not turns[-1].content.strip():  # a blank answer teaches nothing, as a blank function does
        reading.facts.num_empty += 1
        return None
    if any("\0" in turn.content for turn in turns):
        reading.facts.num_nul += 1
    return Conversation(own_id or origin, tuple(turns), origin, reading.name, kind)


def _turns(row: _Row, found: _Found, kind: RecordKind) -> list[Turn]:
    """The user's fields in their order, then the answer."""
    turns = []
    for name in (*kind.needed, *kind.optional):
        if name == kind.answer or name not in found:
            continue
        value = row[found[name]]
        blank = name in kind.may_be_blank
        text = _optional(value, found[name]) if blank else _said(value, found[name])
        if text.strip():
            turns.append(Turn("user", text))
    answer = found[kind.answer]
    return [*turns, Turn("assistant", _text(row[answer], answer))]


def _chat(messages: Any, name: str, reading: Reading) -> list[Turn]:
    """Turns of a conversation: system first, then user and assistant by turns.

    User turns in a row are joined with a blank line; what follows the last answer is left out, for
    nothing in it is learned. Both are said once.
    """
    if not isinstance(messages, list):
        refuse(name, messages, "a list of messages")
    turns: list[Turn] = []
    for number, message in enumerate(messages, 1):
        turn = _message(message, f"{name}[{number}]", reading)
        last = turns[-1].role if turns else ""
        if turn.role == "system" and turns:
            raise RowFault(f"{name}[{number}] is a system message; only the first can be one")
        if turn.role == "assistant" and last != "user":
            raise RowFault(f"{name}[{number}] is an answer that follows no user message; {_REMEDY}")
        if turn.role == last == "user":
            turns[-1] = Turn("user", f"{turns[-1].content}\n\n{turn.content}")
            reading.facts.warn(f"{reading.name}: user messages in a row are joined by a blank line")
        else:
            turns.append(turn)
    return _up_to_last_answer(turns, name, reading)


def _up_to_last_answer(turns: list[Turn], name: str, reading: Reading) -> list[Turn]:
    answers = [n for n, turn in enumerate(turns, 1) if turn.role == "assistant"]
    if not answers:
        raise RowFault(f"{name!r} has no assistant message among {len(turns)}; {_REMEDY}")
    if answers[-1] < len(turns):
        reading.facts.warn(f"{reading.name}: messages after the last answer are left out")
    return turns[: answers[-1]]


def _message(message: Any, name: str, reading: Reading) -> Turn:
    """A message in OpenAI's fields or in ShareGPT's; an answer may say that it is not learned."""
    if not isinstance(message, dict):
        refuse(name, message, "an object with role and content, or with from and value")
    keys = next((keys for keys in _MESSAGE_KEYS if all(key in message for key in keys)), None)
    if keys is None:
        raise RowFault(
            f"{name!r} needs role and content, or from and value, found"
            f" {quote(sorted(map(str, message)))}"
        )
    role = message[keys[0]]
    if not isinstance(role, str) or role not in _ROLES:
        refuse(f"{name}.{keys[0]}", role, f"one of {list(_ROLES)}")
    is_answer = _ROLES[role] == "assistant"
    weight = message.get("weight") if is_answer else None
    if isinstance(weight, bool) or weight not in (None, 0, 1):
        refuse(f"{name}.weight", weight, "0 (context, not learned) or 1 (learned)")
    ignored = reading.facts.ignored_fields
    if len(message) > len(keys) and len(ignored) < _MAX_IGNORED:
        others = message.keys() - {*keys, "weight" if is_answer else ""}
        ignored.update(f"message.{key}" for key in others if message[key] is not None)
    return Turn(_ROLES[role], _said(message[keys[1]], f"{name}.{keys[1]}"), weight != 0)


def _said(value: Any, name: str) -> str:
    """Text that is not blank."""
    text = _text(value, name)
    if not text or text.isspace():
        raise RowFault(f"{name!r} is blank; {_REMEDY}")
    return text


def _optional(value: Any, name: str) -> str:
    return "" if value is None else _text(value, name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        refuse(name, value, "text")
    if not value.isascii():
        refuse_lone_surrogate(name, value)
    return value


_MESSAGE_KEYS = (("role", "content"), ("from", "value"))
