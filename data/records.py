"""Records: what a reader yields, immutable and with their origin. `text` is what a record says."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CodeSample:
    """One function and whether it is vulnerable.

    Attributes:
        id: The dataset's own identifier, or the origin where it has none.
        code: Source text, never empty.
        target: 1 vulnerable, 0 not.
        origin: "file:line" of the row, for messages and for the predictions file.
        cwe: Weakness class such as "CWE-89", or all of several: "CWE-79, CWE-89"; "" where unknown.
        status: Group used by loss.group_weights, such as "VULNERABLE" or "FIXED".
        commit: Commit or project the function came from: pairs share it; "" where unknown.
        function_name: For people; never shown to the model.
        project: Repository the function came from; "" where unknown.
        cve: Vulnerability the function belongs to, such as "CVE-2021-44228"; "" where unknown.
        date: When it was written, a number or ISO 8601; "" where unknown.
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

    @property
    def text(self) -> str:
        """The code."""
        return self.code


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: "system", "user" or "assistant". Two user turns in a row are an instruction and its
            input, which the alpaca template keeps apart.
        content: What was said.
        is_learned: False makes an answer context for those after it.
    """

    role: str
    content: str
    is_learned: bool = True


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns; the assistant's are learned.

    Attributes:
        id: The dataset's own identifier, or the origin where it has none.
        turns: At most one system turn, first; a user turn before every assistant turn.
        origin: "file:line" of the row.
        source: Name of the file it came from.
        kind: Its kind, one of data.records; decides what template "auto" is.
    """

    id: str
    turns: tuple[Turn, ...]
    origin: str
    source: str
    kind: str = "chat"

    @property
    def text(self) -> str:
        """All turns, without a template."""
        return "\n".join(turn.content for turn in self.turns)


@dataclass(frozen=True, slots=True)
class RecordSource:
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
