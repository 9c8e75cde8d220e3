"""How a chat template wants its messages: tried out once for each template, never guessed."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import product
from typing import Any

from data.kinds import REASONING
from data.records import Call, Turn
from data.text.chat_sandbox import TemplateRunsAwayError, bounded, compiled
from data.text.thoughts import own_tag, plain, thought_of

Message = dict[str, Any]

_DAY = datetime(2024, 7, 26)  # what Llama's template writes without a clock
_WORDS = [f"\ue000{letter}\ue001" for letter in "abcdef"]  # private characters: no text holds them
_NAMES = {"developer": ("developer",), "tool": ("tool", "observation", "function", "ipython")}


@dataclass(frozen=True)
class Dialect:
    """How messages are given to a template so that it writes all they say.

    Attributes:
        as_parts: A content is a list of one text part.
        arguments_as_text: A call's arguments are JSON text, not an object.
        null_content: The content of an answer that only calls is null, not empty.
        reasons: A thought is given apart from the content, as reasoning_content.
        reasons_calling: The same of an answer that calls.
        folds_system: What the system says begins the first user's turn: Gemma has no system role.
        asks: It writes a generation prompt.
        opening: What a conversation begins with, before what the user says.
        roles: Our role -> its name, where it differs.
    """

    as_parts: bool = False
    arguments_as_text: bool = False
    null_content: bool = False
    reasons: bool = False
    reasons_calling: bool = False
    folds_system: bool = False
    asks: bool = True
    opening: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)


def rendered(
    template: str,
    messages: Sequence[Message],
    special_tokens: Mapping[str, str],
    tools: str = "",
    **variables: bool,
) -> str:
    """What a template writes, inside bounds; one day stands for today.

    Args:
        template: In jinja.
        messages: As its dialect wants them.
        special_tokens: What it may name.
        tools: JSON text.
        variables: add_generation_prompt, enable_thinking.
    """
    return marked(template, messages, special_tokens, tools, **variables)[0]


def marked(
    template: str,
    messages: Sequence[Message],
    special_tokens: Mapping[str, str],
    tools: str = "",
    **variables: bool,
) -> tuple[str, list[tuple[int, int]]]:
    """The same, and the places between `generation` marks in it; of a mark in a macro they err."""
    blocks, places = list[str](), list[tuple[int, int]]()
    known = compiled(template)
    environment: Any = known.environment
    with environment.activate_tracker(blocks, places):
        for block in known.generate(
            messages=messages,
            tools=json.loads(tools) if tools else None,
            documents=None,
            date_string=f"{_DAY:%d %b %Y}",
            strftime_now=_DAY.strftime,
            **special_tokens,
            **{"add_generation_prompt": False} | variables,
        ):
            blocks.append(block)
    return "".join(blocks), places


def dialect_of(template: str, special_tokens: Mapping[str, str]) -> Dialect:
    """The first way of giving messages in which a template writes all of them.

    Args:
        template: In jinja.
        special_tokens: What it may name.
    """
    question, answer, thought, name, argument, result = _WORDS
    roles = {
        role: next((each for each in names if re.search(f"['\"]{each}['\"]", template)), default)
        for (role, names), default in zip(_NAMES.items(), ("system", "tool"), strict=True)
    }
    chat = [Turn("user", question), Turn("assistant", answer)]
    call = Call(name, f'{{"x": "{argument}"}}', "call00000")
    calls = [Turn("user", question), Turn("assistant", "", calls=(call,))]
    calls += [Turn("tool", result, call_id=call.id), Turn("assistant", answer)]
    thinks = [chat[0], replace(chat[1], reasoning=thought)]

    def text_of(way: Dialect, turns: Sequence[Turn], **variables: bool) -> str:
        try:
            with bounded():
                return rendered(template, messages_of(turns, way), special_tokens, "", **variables)
        except TemplateRunsAwayError:
            raise
        except Exception:  # a template raises what it likes
            return ""

    def first(
        ways: list[Dialect], turns: Sequence[Turn], *words: str, **variables: bool
    ) -> Dialect:
        written = ((way, text_of(way, turns, **variables)) for way in ways)
        return next((way for way, text in written if _is_whole(text, words)), ways[0])

    found = first([Dialect(as_parts=p, roles=roles) for p in (False, True)], chat, question, answer)
    ways = list(product((False, True), repeat=2))
    found = first(
        [replace(found, arguments_as_text=text, null_content=null) for text, null in ways],
        calls,
        *(question, name, argument, result, answer),
    )
    ways_to_reason = (True, False) if own_tag(template) in ("", "<think>") else (True,)
    found = first([replace(found, reasons=way) for way in ways_to_reason], thinks, thought)
    found = first(
        [replace(found, reasons_calling=way) for way in ways_to_reason],
        [calls[0], replace(calls[1], reasoning=thought)],
        *(thought, name, argument),
    )
    found = first(
        [replace(found, folds_system=folds) for folds in (False, True)],
        [Turn("system", result), *chat[:1]],
        *(result, question),
        add_generation_prompt=True,
    )
    unasked, answered, more = (text_of(found, [*chat, *chat][:num]) for num in (1, 2, 3))
    asked = text_of(found, chat[:1], add_generation_prompt=True)
    always = answered[num_same(answered, more) :]  # also after an answer
    asks = asked != unasked or not unasked or (always.strip() and asked.endswith(always))
    return replace(found, asks=bool(asks), opening=asked.partition(question)[0])


def _is_whole(text: str, words: Sequence[str]) -> bool:
    """Whether words are written in their order, and no argument as Python or as quoted JSON."""
    places = [text.find(word) for word in words]
    is_all = -1 not in places and places == sorted(places)
    return is_all and "{'x'" not in text and '{\\"x' not in text


def num_same(first: str, second: str) -> int:
    """Characters with which both texts begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


def messages_of(turns: Sequence[Turn], dialect: Dialect) -> list[Message]:
    """Turns as a template wants them; an instruction and its input are one message."""
    messages: list[Message] = []
    num_calls, waiting = 0, list[Call]()
    if dialect.folds_system:
        turns = _folded(turns)
    for turn in turns:
        last = messages[-1] if messages else {}
        if turn.role == "user" == last.get("role"):
            said = last["content"][0]["text"] if dialect.as_parts else last["content"]
            last["content"] = _content(f"{said}\n{turn.content}", dialect)
            continue
        if turn.calls:  # every call gets an id, and every result the id of its call
            ids = [call.id or f"call{n:05}" for n, call in enumerate(turn.calls, num_calls)]
            calls = [replace(call, id=id) for call, id in zip(turn.calls, ids, strict=True)]
            turn, waiting, num_calls = (
                replace(turn, calls=tuple(calls)),
                calls,
                num_calls + len(ids),
            )
        if turn.role == "tool" and waiting:
            call = next((call for call in waiting if call.id == turn.call_id), waiting[0])
            waiting = [other for other in waiting if other is not call]
            turn = replace(turn, call_id=turn.call_id or call.id, name=turn.name or call.name)
        messages.append(_message(turn, dialect))
    return messages


def _folded(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Turns whose first one is the user's and begins with what the system says."""
    roles = [turn.role for turn in turns[:2]]
    if roles not in (["system", "user"], ["developer", "user"]):
        return turns
    text = f"{turns[0].content}\n\n{turns[1].content}"
    return [replace(turns[1], content=text), *turns[2:]]


def _message(turn: Turn, dialect: Dialect) -> Message:
    content, thought = turn.content, ""
    if turn.role == "assistant":
        thought, said = thought_of(turn)
        reasons = dialect.reasons_calling if turn.calls else dialect.reasons
        content, thought = (said, thought) if reasons else (thought + said, "")
    message: Message = {"role": dialect.roles.get(turn.role, turn.role)}
    message["content"] = _content(content, dialect)
    if thought:
        message |= dict.fromkeys(REASONING, plain(thought))
    if turn.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": _function(call, dialect)}
            for call in turn.calls
        ]
        if dialect.null_content and not content:
            message["content"] = None
    named = {"name": turn.name, "tool_call_id": turn.call_id} if turn.role == "tool" else {}
    return message | {key: value for key, value in named.items() if value}


def _content(text: str, dialect: Dialect) -> Any:
    return [{"type": "text", "text": text}] if dialect.as_parts else text


def _function(call: Call, dialect: Dialect) -> Message:
    arguments: Any = call.arguments
    if not dialect.arguments_as_text:
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = call.arguments  # not JSON: some tools take a program
    return {"name": call.name, "arguments": arguments}
