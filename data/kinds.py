"""Kinds of records. An entry of KINDS is all that a kind needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

REASONING = ("reasoning_content", "reasoning", "thinking", "tool_plan")
"""What a thought is called beside an answer, by the tools that write it."""
_ASIDE = {
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "reasoning": REASONING,
    "history": ("history",),
}
_PAIRS = (
    "preferences (DPO) are not learned here; to learn the preferred answers, set"
    " data.fields={completion: chosen}, or {messages: chosen} where it holds the question too, and"
    " data.ignore_columns=[rejected]"
)
_MEDIA = "pictures and sound are not read here"
SIGNALS: dict[str, str] = {
    **dict.fromkeys((name for names in _ASIDE.values() for name in names), ""),
    **dict.fromkeys(("chosen", "rejected", "rejected_response"), _PAIRS),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), _MEDIA),
    **dict.fromkeys(("loss_mask", "weight", "weights", "mask", "masks", "train_detail"), ""),
    **dict.fromkeys(("tool_calls", "documents", "refusal", "label"), ""),
}
"""Columns, and keys of messages, that change what is learned -> what can be done with them. None is
passed over where no field of a kind reads it."""

FUNCTION = "vulnerability"  # the kind of every record of a task that learns labels


@dataclass(frozen=True)
class RecordKind:
    """The fields of a kind, and what becomes of them.

    Attributes:
        needed: Our field -> the columns it is looked for in, in this order. Every row has them.
        optional: The same for fields that a row may lack.
        aside: The same for what stands beside the turns: system, tools, history, reasoning, and
            which messages are learned.
        holds: "turns": text fields, of which `answer` is the assistant's turn and the others are
            the user's, in their order; "messages": a list of messages; "text": a document;
            "function": code with its label.
        answer: Field of the answer, where turns are held.
        label: Field of the label, where a function is held.
        pair: Fields that stand in for the needed ones if both are mapped: a row is two records.
        ids: Columns of the id; the first one that is not empty counts.
        may_be_blank: Fields of turns that may be blank or null; they are then left out.
        template: What data.template auto means.
        prefers_own_template: The tokenizer's own chat template comes before `template`.
    """

    needed: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    aside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    holds: Literal["turns", "messages", "text", "function"] = "turns"
    answer: str = ""
    label: str = ""
    pair: tuple[str, ...] = ()
    ids: tuple[str, ...] = ("id",)
    may_be_blank: tuple[str, ...] = ()
    template: str = "question_answer"
    prefers_own_template: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """What data.fields may map."""
        return (*self.needed, *self.optional, *self.aside, *self.pair, "id")


# In the order in which a file's first row is tried.
KINDS: dict[str, RecordKind] = {
    "chat": RecordKind(
        {"messages": ("messages", "conversations", "conversation")},
        aside={name: _ASIDE[name] for name in ("system", "tools")}
        | {"loss_mask": ("loss_mask", "weights")},
        holds="messages",
        prefers_own_template=True,
    ),
    "commit": RecordKind(
        {
            "message": ("subject", "message"),
            "old_contents": ("old_contents",),
            "new_contents": ("new_contents",),
        },
        answer="new_contents",
        may_be_blank=("old_contents",),  # a new file
    ),
    "alpaca": RecordKind(
        {"instruction": ("instruction",), "output": ("output",)},
        {"input": ("input",)},
        _ASIDE,
        answer="output",
        may_be_blank=("input",),
        template="alpaca",
    ),
    "prompt_completion": RecordKind(
        {"prompt": ("prompt",), "completion": ("completion", "response")},
        aside=_ASIDE,
        answer="completion",
    ),
    "text": RecordKind({"text": ("text",)}, holds="text"),
    FUNCTION: RecordKind(
        {"code": ("code",), "target": ("target",)},
        {
            "cwe": ("cwe", "cwe_id", "CWE ID"),
            "status": ("status",),
            "commit": ("commit", "commit_id"),
            "function_name": ("function_name", "func_name"),
            "project": ("project",),
            "cve": ("cve", "cve_id", "CVE ID"),
            "date": (
                *("date", "commit_date", "committer_date", "author_date", "commit_time"),
                *("published_date", "publish_date", "Publish Date"),
            ),
            "language": ("language", "lang", "programming_language"),
            "code2": ("code2",),
        },
        holds="function",
        label="target",
        pair=("before", "after"),
        ids=("id", "idx"),  # idx: CodeXGLUE and its descendants
    ),
}
