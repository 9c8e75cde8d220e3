"""A row {column: value} -> Conversation or Document, with every value checked."""

from collections.abc import Mapping
from typing import Any

from data.kinds import FUNCTION, KINDS
from data.readers.columns import Found
from data.readers.reading import Reading, RowFault, checked_text, quote, refuse
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
_MESSAGE_KEYS = (("role", "content"), ("from", "value"))
_MAX_IGNORED = 1000  # columns listed as ignored
_REMEDY = "write it, remove the row, or pass over it with data.max_bad_rows"

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
    """The user's fields in their order, then the answer."""
    kind, said = KINDS[found.kind], []
    for name, column in {**found.needed, **found.optional}.items():
        if name == kind.answer:
            continue
        if name not in kind.may_be_blank:
            text = _said(row[column], column)
        else:
            text = "" if row[column] is None else checked_text(row[column], column)
        if text.strip():
            said.append(Turn("user", text))
    answer = found.needed[kind.answer]
    said.append(Turn("assistant", checked_text(row[answer], answer)))
    return _kept(Conversation(record_id, tuple(said), origin, reading.name, found.kind), reading)


def messages(
    row: _Row, found: Found, record_id: str, origin: str, reading: Reading
) -> list[Conversation]:
    """The messages of a row."""
    (column,) = found.needed.values()
    said = _chat(row[column], column, reading)
    return _kept(Conversation(record_id, tuple(said), origin, reading.name, found.kind), reading)


def _kept(record: Conversation, reading: Reading) -> list[Conversation]:
    """The record, unless its answer is blank: it teaches nothing, as a blank function does."""
    if not record.turns[-1].content.strip():
        reading.facts.num_empty += 1
        return []
    if any("\0" in turn.content for turn in record.turns):
        reading.facts.num_nul += 1
    return [record]


def sample_conversation(sample: CodeSample, source: str) -> Conversation:
    """A labelled function as a question and its answer."""
    turns = (
        Turn("user", QUESTION),
        Turn("user", sample.code),
        Turn("assistant", _ANSWERS[sample.target]),
    )
    return Conversation(sample.id, turns, sample.origin, source, FUNCTION)


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
    text = checked_text(value, name)
    if not text or text.isspace():
        raise RowFault(f"{name!r} is blank; {_REMEDY}")
    return text
