"""Records: what a reader yields, immutable and with their origin. `text` is what a record says.

What is kept by the million is a named tuple: a frozen dataclass takes six times as long to make.
"""

import json
from dataclasses import dataclass
from typing import NamedTuple


class CodeSample(NamedTuple):
    """A function, or two that are compared, and its class.

    Attributes:
        id: The dataset's own identifier, or the origin where it has none.
        code: Source text, never empty.
        target: 1 vulnerable, 0 not; of other classes see data/text/labels.py.
        origin: "file:line" of the row, for messages and for the predictions file.
        cwe: Weakness class such as "CWE-89", or all of several: "CWE-79, CWE-89"; "" where unknown.
        status: Group used by loss.group_weights, such as "VULNERABLE" or "FIXED".
        commit: Commit or project the function came from: pairs share it; "" where unknown.
        function_name: For people; never shown to the model.
        project: Repository the function came from; "" where unknown.
        cve: Vulnerability the function belongs to, such as "CVE-2021-44228"; "" where unknown.
        date: When it was written, a number, ISO 8601, or as git writes it; "" where unknown.
        language: That it is written in, as the dataset calls it; "" where unknown.
        code2: The second function of a pair, such as two clones; "" where there is one.
    """

    id: str
    code: str
    target: int
    origin: str
    cwe: str = ""
    status: str = ""
    commit: str = ""
    function_name: str = ""
    project: str = ""
    cve: str = ""
    date: str = ""
    language: str = ""
    code2: str = ""

    @property
    def text(self) -> str:
        """The code; of a pair both, the same whichever comes first."""
        if not self.code2:
            return self.code
        return "\n".join(sorted((self.code, self.code2), key=str.split))


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool.

    Attributes:
        name: Of the tool.
        arguments: JSON text, or what the data has instead.
        id: What the result names; "" where the data has none.
    """

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation; every format of chats is read into this.

    Attributes:
        role: "system", "developer", "user", "assistant" or "tool". Two user turns in a row are an
            instruction and its input, which the alpaca template keeps apart.
        content: What was said, or what a tool gave back.
        is_learned: False makes an answer context for those after it.
        reasoning: What was thought before the content, where the data has it apart.
        calls: Tools that an answer calls after its content.
        name: Of the tool that answers.
        call_id: The call that it answers.
    """

    role: str
    content: str
    is_learned: bool = True
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    name: str = ""
    call_id: str = ""

    @property
    def text(self) -> str:
        """All of it as text: the thought in tags, the content, a call a line."""
        if not self.reasoning and not self.calls:
            return self.content
        thought = f"<think>\n{self.reasoning}\n</think>\n\n" if self.reasoning else ""
        calls = [
            f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}'
            for call in self.calls
        ]
        return thought + "\n".join(filter(None, [self.content, *calls]))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns; the assistant's are learned.

    Attributes:
        id: The dataset's own identifier, or the origin where it has none.
        turns: Of one role never two in a row, but a user's and a tool's; the last is an answer.
        origin: "file:line" of the row.
        source: Name of the file it came from.
        kind: Its kind, one of data.records; decides what template "auto" is.
        tools: JSON text of the list of tools that may be called; "" where there are none.
    """

    id: str
    turns: tuple[Turn, ...]
    origin: str
    source: str
    kind: str = "chat"
    tools: str = ""

    @property
    def text(self) -> str:
        """All turns, without a template."""
        said = "\n".join(turn.text for turn in self.turns)
        return f"{self.tools}\n{said}" if self.tools else said


class RecordSource(NamedTuple):
    """The fields of a conversation or document that are kept beside its tokens."""

    id: str
    origin: str
    source: str


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is learned unchanged.

    Attributes:
        id: The dataset's own identifier, or the origin where it has none.
        text: Never empty.
        origin: "file:line" of the row, or the file.
        source: Name of the file it came from.
        kind: Its kind, one of data.records.
    """

    id: str
    text: str
    origin: str
    source: str
    kind: str = "text"
