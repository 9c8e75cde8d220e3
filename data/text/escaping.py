"""The user's text where it is shown: one function for each place, none of which obeys the text."""

import re
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# C0 but \t and \n, DEL, C1; what turns the direction of writing around; half a surrogate pair.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_STYLED = re.compile(rf"(\x1b\[[0-9;?]*[A-Za-z]|\r)|({_CONTROLS.pattern})")
# Markup wherever it may begin; of "]" and "_" only where they can: [0.1, 0.2] and lora_r stay.
_MARKUP = re.compile(
    r"[\\`*|~]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])"
    r"|^(?:[#+-]+(?=\s|$)|>|[-=](?=[-=\s]|$)|\d+[.)](?=\s|$))"
)
_COLUMN = re.compile(r" *\S+(?: \S+)* {2,}")  # what stands before the second one
_MOST_INDENT = 24
_HTML = {"<": "&lt;", "&": "&amp;"}
_FORMULA = re.compile(r"[=+\-@\t\r\n|%]")
_NOT_OF_A_TAG = re.compile(r"[^\w .,:()/+-]")


def escaped(text: str) -> str:
    """Text that cannot drive a terminal: control characters but line ends and tabs written out."""
    return _CONTROLS.sub(lambda found: ascii(found.group())[1:-1], text)


def styled(text: str) -> str:
    """The same for what a program has written for a terminal: its colours and bars stay."""
    return _STYLED.sub(lambda found: found[1] or ascii(found[2])[1:-1], text)


def print_text(console: "Console", lines: Iterable[str]) -> None:
    """Print lines; a terminal breaks them between words, below their second column."""
    for line in lines:
        text = escaped(line)
        if console.is_terminal:
            text = "\n".join(broken(part, console.width) for part in text.split("\n"))
        console.print(text, highlight=False, soft_wrap=True, markup=False)


def broken(line: str, width: int, indent: int | None = None) -> str:
    """A line as lines of a width, those after the first indented, or below its second column."""
    if len(line) <= width:
        return line
    column = _COLUMN.match(line)
    if indent is None:
        indent = len(column[0]) if column and len(column[0]) <= _MOST_INDENT else 4
    return "\n".join(
        textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def markdown(value: Any) -> Any:
    """A value on one line of a Markdown page; parts of the page itself are marked as safe."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    text = _on_one_line(f"{value:,}" if isinstance(value, int) else value)
    text = _MARKUP.sub(lambda found: found.group()[:-1] + "\\" + found.group()[-1], text)
    return re.sub(r"<|&(?=#|\w+;)", lambda found: _HTML[found.group()], text)


def _on_one_line(value: Any) -> str:
    return " ".join(escaped(str(value).replace("\r\n", "\n")).split())


def markdown_code(text: Any) -> Any:
    """A text on one line as code of a Markdown page, also within a table."""
    from markupsafe import Markup

    plain = _on_one_line(text).replace("`", "'").replace("|", "\\|")
    return Markup(f"`{plain}`")


def markdown_block(text: str) -> Any:
    """Lines as an indented block of code, in which nothing is markup."""
    from markupsafe import Markup

    return Markup("\n".join(f"    {line}" for line in escaped(text).split("\n")))


def csv_value(value: Any) -> Any:
    """A value of a CSV that no spreadsheet takes for a formula; numbers stay."""
    if not isinstance(value, str):
        return value
    return f"'{escaped(value)}" if _FORMULA.match(value) else escaped(value)


def tag(name: str) -> str:
    """The name of a curve in TensorBoard."""
    return _NOT_OF_A_TAG.sub("_", name)
