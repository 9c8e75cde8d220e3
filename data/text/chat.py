"""Conversations through the tokenizer's own chat template: what the model is asked, what it writes.

What is learned for an answer is what the model has to write after the template's generation prompt
for the turns before it, up to and with its end of turn. A template may write the same turn in one
way while it is the last and in another way later: Qwen3 and R1 drop earlier thoughts. Then the text
of one answer is not how the text of the next begins, and each is an example of its own.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from data.errors import DataError, parsing
from data.records import Conversation, Turn
from data.text.chat_sandbox import bounded
from data.text.dialects import Dialect, Message, dialect_of, marked, messages_of, num_same, rendered
from data.text.thoughts import (
    after_empty,
    after_opened,
    closed,
    ends_empty,
    opened_at,
    own_tag,
    plain,
    thought_of,
    written,
)

_MARKS = re.compile(r"\{%[-+]?\s*generation\b")
_STAND_IN = Turn("assistant", "\ue000\ue001\ue000")  # private characters, which no text holds
_PASS = "remove the row, or pass over it with data.max_bad_rows"


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


@dataclass
class ChatTemplate:
    """A tokenizer's own template, and what was found out about it.

    Attributes:
        source: In jinja.
        special_tokens: What it may name, such as {"bos_token": "<s>"}.
        markers: Tokens of the tokenizer that can end a turn.
        dialect: How it wants its messages.
        tails: Roles of the turns before an answer -> what follows it while it is the last turn.
    """

    source: str
    special_tokens: Mapping[str, str]
    markers: Collection[str]
    dialect: Dialect
    tails: dict[tuple[object, ...], str] = field(default_factory=dict)

    def text(self, messages: Sequence[Message], tools: str = "", **variables: bool) -> str:
        """What it writes."""
        return rendered(self.source, messages, self.special_tokens, tools, **variables)


@dataclass(frozen=True)
class _Answer:
    """What the model reads and writes at one answer.

    Attributes:
        text: Up to the end of the turn.
        start: Where the answer begins in it.
        rest: What the template writes after it.
        ends: The end token has to follow.
    """

    text: str
    start: int
    rest: str
    ends: bool


def chat_template(
    source: str, special_tokens: Mapping[str, str], markers: Collection[str] = ()
) -> ChatTemplate:
    """A template; what was found out about it is kept for the next records."""
    return _known(source, tuple(sorted(special_tokens.items())), tuple(markers))


@lru_cache(maxsize=4)
def _known(
    source: str, special: tuple[tuple[str, str], ...], markers: tuple[str, ...]
) -> ChatTemplate:
    return ChatTemplate(source, dict(special), markers, dialect_of(source, dict(special)))


def chat_examples(
    record: Conversation, template: ChatTemplate, supervise: str = "answers"
) -> list[list[Span]]:
    """Prompts and answers of a conversation, as one example where its text only grows.

    An answer's span ends with the markers that the template writes after it, for generation stops
    there; without one, with the text after it; without text, the end token follows.

    Args:
        record: Turns are rendered unchanged.
        template: The tokenizer's own.
        supervise: As data.supervise; of "all" the last text is learned whole.

    Raises:
        RecordRefused: The template fails, leaves out what the record says, or does not show where
            an answer begins.
    """
    answers = [n for n, turn in enumerate(record.turns) if turn.role == "assistant"]
    places = [n for n in answers if supervise == "all" or record.turns[n].is_learned]
    if supervise == "last_answer":
        places = places[-1:]
    where = f"{record.origin}: the chat template fails"
    with parsing(where, RecordRefused, _PASS), bounded():
        made = [_answer(record, template, place) for place in places]
    chains: list[list[_Answer]] = []
    for answer in made:
        if not chains or not answer.text[: answer.start].startswith(chains[-1][-1].text):
            chains.append([])
        chains[-1].append(answer)
    if supervise == "all":
        chains = chains[-1:]
    return [list(_spans(chain, learn_all=supervise == "all")) for chain in chains]


def _spans(chain: Sequence[_Answer], learn_all: bool) -> Iterator[Span]:
    begin = 0
    for answer in chain:
        yield Span(answer.text[begin : answer.start], supervised=learn_all)
        yield Span(answer.text[answer.start :], supervised=True, ends=answer.ends)
        begin = len(answer.text)
    yield Span(chain[-1].rest, supervised=learn_all)


def _answer(record: Conversation, template: ChatTemplate, place: int) -> _Answer:
    """The text up to the end of an answer, and where the model begins to write."""
    turns = record.turns[: place + 1]
    thought, _ = thought_of(turns[-1])
    messages = messages_of(turns, template.dialect)
    whole = template.text(messages, record.tools)
    rest, ends = _rest(record, template, messages, turns)
    end = len(whole) - len(rest) if whole.endswith(rest) else len(whole)
    before = template.text(messages[:-1], record.tools, add_generation_prompt=True)
    if thought and ends_empty(before):
        before = _asked(record, template, messages, thinks=True)
    found = _start(record, template, messages, whole, before, turns)
    if found is None:
        raise _uncertain(record, whole, before, place + 1)
    prompt, start = found
    answer = whole[start:end]
    if not is_written(plain(thought), answer) and own_tag(template.source):
        prompt, answer = before, whole[after_empty(whole, start) : end]
        answer = written(thought, template.source, before) + answer
    _refuse_lost(record, turns, prompt, answer)
    return _Answer(prompt + answer, len(prompt), whole[end:], ends)


def _start(
    record: Conversation,
    template: ChatTemplate,
    messages: Sequence[Message],
    whole: str,
    before: str,
    turns: Sequence[Turn],
) -> tuple[str, int] | None:
    """The prompt of an answer, and where the answer begins in the whole text.

    An empty thought that the template writes where the data has none belongs to the prompt.
    """
    thinks = bool(thought_of(turns[-1])[0])
    if not template.dialect.asks:
        header, _ = _around(record, template, messages)
        if mark := _marked_start(record, template, messages, turns):
            before = whole[:mark]
        elif header[len(before) :].strip() and whole.startswith(header.rstrip(" ")):
            before = header.rstrip(" ")  # a blank belongs to the word after it
    prompts = [before]
    if not whole.startswith(before) or (not thinks and "think" in template.source):
        prompts.append(_asked(record, template, messages, thinks=thinks))
    fitting = [len(prompt) for prompt in prompts if whole.startswith(prompt)]
    if fitting:
        start = max(fitting)
        start = start if thinks else after_empty(whole, start)
        return whole[:start], start
    header, _ = _around(record, template, messages)
    found = _beside(before, whole, header, turns)
    if found is None and (mark := _marked_start(record, template, messages, turns)):
        found = whole[:mark], mark
    return found


def _marked_start(
    record: Conversation, template: ChatTemplate, messages: Sequence[Message], turns: Sequence[Turn]
) -> int:
    """Where the template's own marks begin an answer; 0 where they do not hold what it says."""
    if not _MARKS.search(template.source):
        return 0
    text, places = marked(template.source, messages, template.special_tokens, record.tools)
    earlier = num_same(template.text(messages[:-1], record.tools), text)
    own = [place for place in places if place[0] >= earlier]
    thought, said = thought_of(turns[-1])
    pieces = [plain(thought), said, *(call.name for call in turns[-1].calls)]
    held = text[own[0][0] : own[-1][1]] if own else ""
    return own[0][0] if own and all(is_written(piece, held) for piece in pieces) else 0


def _asked(
    record: Conversation, template: ChatTemplate, messages: Sequence[Message], *, thinks: bool
) -> str:
    """The prompt of a template that is told whether to think."""
    mode = {"enable_thinking": thinks, "thinking": thinks}
    return template.text(messages[:-1], record.tools, add_generation_prompt=True, **mode)


def _around(
    record: Conversation, template: ChatTemplate, messages: Sequence[Message]
) -> tuple[str, str]:
    """What the template writes before the content of an answer, and after it."""
    stand_in = messages_of([_STAND_IN], template.dialect)
    text = template.text([*messages[:-1], *stand_in], record.tools)
    header, _, tail = text.rpartition(_STAND_IN.content)
    return header, tail


def _beside(before: str, whole: str, header: str, turns: Sequence[Turn]) -> tuple[str, int] | None:
    """The same where what is asked is not how the whole text begins.

    Templates write earlier turns otherwise once they are answered, or end the prompt with what they
    do not keep: R1's in the middle of a thought, which is closed where the data has none. Both
    texts are compared from the last thing that was said.
    """
    thought, said = thought_of(turns[-1])
    last = turns[-2].content.strip() if len(turns) > 1 else ""
    first, begin = max(0, before.rfind(last)), max(0, whole.rfind(last, 0, len(header)))
    asked, text = before[first:], whole[begin:]
    same = num_same(asked, text)
    if same == len(asked):
        start = begin + same if thought else after_empty(whole, begin + same)
        return before + whole[begin + same : start], start
    opened, tag = opened_at(asked), asked.rfind("<", 0, same)
    if 0 <= opened < same:
        same = opened
    elif tag >= 0 and ">" not in asked[tag:same]:
        same = tag  # both go on with a tag, and not with the same
    start = same if thought else after_empty(text, same)
    if thought and opened >= 0:
        return before, begin + after_opened(text, same, asked[opened:].strip())
    if start > same:
        return before[:first] + text[:start], begin + start
    is_thought = opened >= 0 or after_empty(asked, same) == len(asked)
    if is_thought or text.startswith((plain(thought) or said).lstrip(), same):
        return (before if thought else closed(before)), begin + same
    return None


def _rest(
    record: Conversation, template: ChatTemplate, messages: Sequence[Message], turns: Sequence[Turn]
) -> tuple[str, bool]:
    """What the template writes after the end of an answer, and whether the end token has to come.

    It is what a stand-in for the answer shows, the same for all conversations of the same roles.
    """
    key = (bool(record.tools), *((turn.role, bool(turn.calls)) for turn in turns[:-1]))
    tail = template.tails.get(key)
    if tail is None:
        tail = template.tails[key] = _around(record, template, messages)[1]
    close, ends = _close(tail, template)
    return tail[len(close) :], ends


def _close(tail: str, template: ChatTemplate) -> tuple[str, bool]:
    """What of the text after an answer is learned, and whether the end token has to follow.

    Markers that follow one another close it together, but for those that open a turn: they begin
    a conversation, too.
    """
    markers = template.markers
    found = [(tail.find(marker), -len(marker)) for marker in markers if marker in tail]
    if not found:
        return tail.rstrip(), not tail.strip()
    place, length = min(found)
    end = place - length
    run, begun, opening, opens = end, 0, template.dialect.opening, set[str]()
    while own := _marker_at(opening, begun, [*markers, *template.special_tokens.values()]):
        begun += len(own)
        opens.add(own)
    while (own := _marker_at(tail, run, markers)) and own not in opens:
        run += len(own)
    return tail[: run if own or not tail[run:].strip() else end], False


def _marker_at(text: str, place: int, markers: Collection[str]) -> str:
    """The longest marker at a place; "" where there is none."""
    return max((m for m in markers if m and text.startswith(m, place)), key=len, default="")


def _refuse_lost(record: Conversation, turns: Sequence[Turn], prompt: str, answer: str) -> None:
    """Refuse a record of which the template leaves something out or changes it."""
    for number, turn in enumerate(turns, 1):
        is_last, thought, said = number == len(turns), "", turn.content
        if turn.role == "assistant":
            thought, said = thought_of(turn)
        within = answer if is_last else prompt
        pieces = {f"the {turn.role} turn {number}": said}
        pieces |= {f"the call {call.name} of turn {number}": call.name for call in turn.calls}
        if is_last:
            pieces[f"the thought of turn {number}"] = plain(thought)
        for what, piece in pieces.items():
            if not is_written(piece, within):
                raise _lost(record, what, piece)
    for name in _tool_names(record.tools):
        if name not in prompt:
            raise _lost(record, "the tool", name)


def is_written(piece: str, text: str) -> bool:
    """Whether a text holds what a turn says, but for blanks around it, or quoted as JSON."""
    core = piece.strip()
    if core in text or json.dumps(core, ensure_ascii=False)[1:-1] in text:
        return True
    return " ".join(core.split()) in " ".join(text.split())


def _tool_names(tools: str) -> list[str]:
    listed = [tool.get("function", tool) for tool in json.loads(tools)] if tools else []
    return [str(tool["name"]) for tool in listed if isinstance(tool, dict) and "name" in tool]


def _lost(record: Conversation, what: str, piece: str) -> RecordRefused:
    return RecordRefused(
        f"{record.origin}: the chat template does not write {what} as it is"
        f" ({piece.strip()[:40]!r}); the model's format has no place for it: put its text into a"
        f" user's turn, leave it out with data.ignore_columns, or {_PASS}"
    )


def _uncertain(record: Conversation, whole: str, before: str, number: int) -> RecordRefused:
    same = num_same(whole, before)
    return RecordRefused(
        f"{record.origin}: the chat template asks for turn {number} with"
        f" {before[same:][:40]!r} where its text has {whole[same:][:40]!r}, so that no span is"
        f" certain; correct the template, or {_PASS}"
    )
