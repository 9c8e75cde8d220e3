"""What a model thinks before its answer: in the data, in a template's text, and put into one."""

import re
from dataclasses import replace

from data.records import Conversation, Document, Turn

_TAGS = {  # what opens a thought, in the formats of many models -> what closes it
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
    "<mm:think>": "</mm:think>",
    "◁think▷": "◁/think▷",
    "<|channel>thought": "<channel|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
}
_OPENS, _CLOSES = ("|".join(map(re.escape, tags)) for tags in (_TAGS, _TAGS.values()))
_OPENED = re.compile(rf"({_OPENS})\s*$")
_EMPTY = re.compile(rf"\s*(?:{_OPENS})?\s*(?:{_CLOSES})\s*")
_EMPTY_END = re.compile(rf"(?:{_OPENS})\s*(?:{_CLOSES})\s*$")
_INSIDE = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)  # as data writes it


def thought_of(turn: Turn) -> tuple[str, str]:
    """What an answer thinks, in tags as the data has it, and what it says; "" for no thought."""
    inside = None if turn.reasoning else _INSIDE.match(turn.content)
    if inside:
        return inside[0] if inside[1].strip() else "", turn.content[inside.end() :]
    return replace(turn, content="", calls=()).text, turn.content


def ends_with_thought(record: Conversation | Document) -> bool:
    """Whether the last answer of a conversation thinks."""
    if isinstance(record, Document):
        return False
    last = record.turns[-1]
    return bool(last.reasoning) or ("</think>" in last.content and bool(thought_of(last)[0]))


def plain(thought: str) -> str:
    """A thought without its tags."""
    inside = _INSIDE.match(thought)
    return inside[1].strip() if inside else thought


def opened_at(prompt: str) -> int:
    """Where a thought begins that a prompt opens and leaves open; -1 where it does not."""
    opened = _OPENED.search(prompt)
    return opened.start() if opened else -1


def ends_empty(prompt: str) -> bool:
    """Whether a prompt ends with an empty thought."""
    return _EMPTY_END.search(prompt) is not None


def closed(prompt: str) -> str:
    """A prompt whose open thought is closed, empty."""
    opened = _OPENED.search(prompt)
    return f"{prompt.rstrip()}\n\n{_TAGS[opened[1]]}\n\n" if opened else prompt


def after_opened(text: str, place: int, tag: str) -> int:
    """Where a thought goes on that a tag opens at a place; the place where it does not."""
    if not text.startswith(tag, place):
        return place
    place += len(tag)
    return place + len(text[place:]) - len(text[place:].lstrip())


def after_empty(text: str, place: int) -> int:
    """Where a text goes on after an empty thought, or the end of one, that is at a place."""
    empty = _EMPTY.match(text, place)
    return empty.end() if empty else place


def own_tag(template: str) -> str:
    """What opens a thought in the format that a template knows; "" where it knows none."""
    found = (tag for tag, end in _TAGS.items() if tag in template or end in template)
    return next(found, "")


def written(thought: str, template: str, prompt: str) -> str:
    """A thought in the tags that a template knows, less the one that its prompt opens already."""
    tag = own_tag(template)
    if tag != "<think>":
        thought = f"{tag}\n{plain(thought)}\n{_TAGS[tag]}"
    if opened_at(prompt) >= 0:
        thought = thought.lstrip().removeprefix(tag).lstrip()
    return thought
