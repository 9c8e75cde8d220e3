"""The chat templates that lie beside a tokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.errors import TokenizerError, file_text
from data.records import Conversation, Document
from data.text.chat_sandbox import TemplateRunsAwayError
from data.text.tokenizer import companion, special_tokens

_SAVE = "save the tokenizer again"
_MOST_BYTES = 1 << 20  # of a template; the longest have 20 KB
_ALONE, _NAMED = "chat_template.jinja", "additional_chat_templates"
_WITH_TOOLS = "tool_use"  # as transformers calls and chooses it


def own_template(folder: Path, *, has_tools: bool = False) -> tuple[str | None, dict[str, str]]:
    """The chat template beside a tokenizer, if it has one, and the special tokens it may name.

    Args:
        folder: Holds chat_template.jinja, and others in additional_chat_templates; or the templates
            are in tokenizer_config.json.
        has_tools: Of several templates, the one for conversations with tools.

    Raises:
        TokenizerError: The files are not JSON, hold something else under these names, or hold
            several templates and none called default.
    """
    named = _templates(folder)
    chosen = named.get(_WITH_TOOLS) if has_tools else None
    return chosen or named.get("default"), special_tokens(folder)


def uses_tools(record: Conversation | Document) -> bool:
    """Whether tools are stated, called or answer."""
    if isinstance(record, Document):
        return False
    return bool(record.tools) or any(turn.calls or turn.role == "tool" for turn in record.turns)


@contextmanager
def naming_template(folder: Path) -> Iterator[None]:
    """Around rendering: a template that runs away is named by its file.

    Raises:
        TokenizerError: It does.
    """
    try:
        yield
    except TemplateRunsAwayError as error:
        alone = folder / _ALONE
        file = alone if alone.is_file() else folder / "tokenizer_config.json"
        raise TokenizerError(f"{file}: {error}; correct the template there") from error


def _templates(folder: Path) -> dict[str, str]:
    """Its templates by name."""
    alone = folder / _ALONE
    if alone.is_file():
        others = (path for path in (folder / _NAMED).glob("*.jinja") if path.is_file())
        files = {"default": alone} | {path.stem: path for path in others}
        return {n: file_text(f, TokenizerError, _SAVE, _MOST_BYTES) for n, f in files.items()}
    path = folder / "tokenizer_config.json"
    template: Any = companion(path).get("chat_template")
    named: dict[str, Any] = {} if template is None else {"default": template}
    if isinstance(template, list) and all(isinstance(each, dict) for each in template):
        named = {str(each.get("name")): each.get("template") for each in template}
        if "default" not in named:
            raise TokenizerError(
                f"{path}: chat templates {sorted(named)}, none called default; keep one, or set"
                " data.template"
            )
    for value in named.values():
        if not isinstance(value, str):
            raise TokenizerError(
                f"{path}: chat_template must be text, or a list of objects with name and template,"
                f" found {str(value)[:40]!r}; {_SAVE}"
            )
    return named
