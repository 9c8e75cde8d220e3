"""Every key of a recipe for --help: default, choices and what it means, a line each."""

import json
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.config.sections import RunConfig


def describe_keys() -> str:
    """The keys by section, with "key = default {choices}  meaning"."""
    lines = []
    for section, field in RunConfig.model_fields.items():
        fields: Any = field.annotation
        lines.append(f"\n{section}: {(fields.__doc__ or '').splitlines()[0]}")
        for key, info in fields.model_fields.items():
            allowed = choices(info.annotation)
            braces = f" {{{', '.join(allowed)}}}" if len(allowed) > 1 else ""
            lines.append(f"  {section}.{key} = {_default(info)}{braces}  {info.description}")
    return "\n".join(lines)


def choices(annotation: Any) -> list[str]:
    """The words that a key takes, and N where it takes a number, too; none of a number alone."""
    found = _words(annotation)
    return [] if set(found) <= {"N"} else found


def _words(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    if annotation in (int, float):
        return ["N"]
    return [word for part in get_args(annotation) for word in _words(part)]


def _default(info: FieldInfo) -> str:
    """As a recipe writes it."""
    if info.is_required():
        return "(required)"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    return value if isinstance(value, str) else json.dumps(value)
