"""A list of messages, in the words of any tool that writes them -> turns."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from data.kinds import REASONING
from data.readers.reading import Reading, RowFault, checked_text, quote, refuse
from data.records import Call, Turn

REMEDY = "write it, remove the row, or pass over it with data.max_bad_rows"
_ROLES = {
    "system": "system", "developer": "developer", "user": "user", "assistant": "assistant",
    "tool": "tool", "function": "tool",  # OpenAI, now and before
    "human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool",
    "chatgpt": "assistant", "bot": "assistant", "tool_call": "assistant",  # ShareGPT
    "tool_response": "tool", "function_response": "tool",
    "model": "assistant", "prompter": "user", "ipython": "tool",  # Gemini, OASST, Llama 3
}  # fmt: skip
_CALLS = ("function_call", "tool_call")  # roles whose text is a call
CALLS = ("tool_calls", "function_call")
"""Keys of a message that hold calls."""
ARGUMENTS = ("arguments", "parameters")
"""What the arguments of a call are called."""
_ROLE, _CONTENT = ("role", "from"), ("content", "value", "text")
_FLAGS = {  # -> what it is for an answer that is learned
    "weight": True, "loss": True, "train": True, "training": True, "loss_mask": True,
    "loss_weight": True, "masked": False,
}  # fmt: skip
_Schemas = Mapping[str, Any]  # tool -> JSON schema of its arguments
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")
_READ = {
    *_ROLE, *_CONTENT, *REASONING, *_FLAGS, *CALLS, "tools", "functions",
    "name", "tool_call_id", "id",
}  # fmt: skip


def turns_of(
    value: Any, name: str, reading: Reading, origin: str, tools: str = ""
) -> tuple[list[Turn], str]:
    """The turns of a list of messages, and the tools that one of them states, as JSON text.

    Args:
        value: The list, or its JSON text.
        name: Of its column.
        reading: Notes what is not read.
        origin: Of the row.
        tools: Those that the row states beside the messages. In a table, where a key that only
            other rows have is null, they say which nulls of a call's arguments are meant.

    Raises:
        RowFault: A message that is not one.
        DataError: One with a key that would change what is learned, and is not read.
    """
    is_padded = reading.fills_nulls
    if isinstance(value, str) and value.lstrip().startswith("["):
        value, is_padded = parsed(value, name), False
    if not isinstance(value, list):
        refuse(name, value, "a list of messages, or its JSON text")
    turns, stated = [], ""
    prefix, named = "message.", reading.config.ignore_columns
    ignored = {key.removeprefix(prefix) for key in named if key.startswith(prefix)}
    for number, message in enumerate(value, 1):
        where = f"{name}[{number}]"
        if not isinstance(message, dict):
            refuse(where, message, "an object with role and content, or with from and value")
        if left := ignored & message.keys():
            reading.unread(message, left, origin, prefix)
            message = {key: each for key, each in message.items() if key not in ignored}
        stated = stated or tools_text(message.get("tools") or message.get("functions"), where)
        calls = is_padded and any(message.get(key) for key in CALLS)
        turns.append(_turn(message, where, _schemas(stated or tools) if calls else None))
        if not message.keys() <= _READ:
            reading.unread(message, message.keys() - _READ, origin, prefix)
    return turns, stated


def parsed(text: str, name: str) -> Any:
    """What a JSON text holds.

    Raises:
        RowFault: It is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFault(
            f"{name!r} is not JSON ({error}), found {quote(text)}; write it with json.dumps"
        ) from error


def tools_text(value: Any, name: str) -> str:
    """A list of tools as JSON text, each in OpenAI's form; "" for none.

    Raises:
        RowFault: It is not a list of objects, nor the JSON text of one.
    """
    if isinstance(value, str):
        value = parsed(value, name) if value.strip() else None
    tools = [value] if isinstance(value, dict) else value or []
    if not isinstance(tools, list):
        refuse(name, value, "a list of tools, or its JSON text")
    tools = [parsed(tool, name) if isinstance(tool, str) else tool for tool in tools]
    for tool in tools:
        if not isinstance(tool, dict):
            refuse(name, tool, "a list of objects, one a tool")
    whole = [
        {"type": "function", "function": tool}
        if "name" in tool and "function" not in tool
        else tool
        for tool in tools
    ]
    return checked_text(json.dumps(whole, ensure_ascii=False), name) if whole else ""


def _schemas(tools: str) -> dict[str, Any]:
    """Tool -> the JSON schema of its arguments."""
    functions = (
        tool.get("function", tool) for tool in (json.loads(tools) if tools else []) if tool
    )
    return {str(f.get("name")): f.get("parameters") for f in functions if isinstance(f, dict)}


def _allowed(value: Any, schema: Any) -> Any:
    """A value without the nulls that a JSON schema neither requires nor allows."""
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, list):
        return [_allowed(each, schema.get("items")) for each in value]
    if not isinstance(value, dict):
        return value
    known, required = schema.get("properties"), schema.get("required") or ()
    of = {key: known.get(key) if isinstance(known, dict) else None for key in value}
    return {
        key: _allowed(each, of[key])
        for key, each in value.items()
        if each is not None or key in required or _may_be_null(of[key])
    }


def _may_be_null(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    kind, ways = schema.get("type"), [*(schema.get("anyOf") or []), *(schema.get("oneOf") or [])]
    is_null = "null" in (kind if isinstance(kind, list) else [kind])
    return is_null or schema.get("nullable") is True or any(map(_may_be_null, ways))


def is_flag(value: Any) -> bool:
    """Whether a value says that an answer is learned, or that it is not."""
    return isinstance(value, bool | int | float) and value in (0, 1)


def refuse_flag(name: str, value: Any) -> None:
    """Raises RowFault: a flag is neither 0 nor 1."""
    refuse(name, value, "0 or false (context, not learned), or 1 or true (learned)")


def _turn(message: Mapping[str, Any], name: str, schemas: _Schemas | None) -> Turn:
    said, content = (
        next((key for key in keys if key in message), "") for keys in (_ROLE, _CONTENT)
    )
    calls = tuple(_calls(message, name, schemas))
    if not said or not (content or calls):
        raise RowFault(
            f"{name!r} needs role and content, or from and value, found"
            f" {quote(sorted(map(str, message)))}"
        )
    role = message[said]
    if not isinstance(role, str) or role.lower() not in _ROLES:
        refuse(f"{name}.{said}", role, f"one of {list(_ROLES)}")
    value, where = message.get(content), f"{name}.{content}"
    if role.lower() in _CALLS and not calls:
        calls, value = tuple(_listed_calls(*_structure(value, where, schemas), where)), None
    turn_role = _ROLES[role.lower()]
    text, thought = _content(value, where, may_be_null=bool(calls), may_be_any=turn_role == "tool")
    reasoning = next((message[key] for key in REASONING if message.get(key)), "") or thought
    if turn_role in ("user", "assistant") and not (calls or reasoning) and not text.strip():
        raise RowFault(f"{where!r} is blank; {REMEDY}")
    return Turn(
        turn_role,
        text,
        turn_role != "assistant" or _is_learned(message, name),
        checked_text(reasoning, f"{name}.{REASONING[0]}"),
        calls,
        _id(message.get("name")),
        _id(message.get("tool_call_id")),
    )


def _id(value: Any) -> str:
    return "" if value is None else str(value)


def _is_learned(message: Mapping[str, Any], name: str) -> bool:
    """What an answer says about itself, by any of the usual names."""
    found = {flag: message[flag] for flag in _FLAGS if message.get(flag) is not None}
    for flag, value in found.items():
        if not is_flag(value):
            refuse_flag(f"{name}.{flag}", value)
    said = {bool(value) == _FLAGS[flag] for flag, value in found.items()}
    if len(said) > 1:
        raise RowFault(f"{name!r} says both that it is learned and that it is not: {found}")
    return said != {False}


def _content(value: Any, name: str, *, may_be_null: bool, may_be_any: bool) -> tuple[str, str]:
    """The text of a message, and the thought where it is a part of its own.

    Args:
        value: Text, or a list of parts.
        name: Of the field.
        may_be_null: The message calls a tool.
        may_be_any: What a tool gives back may be any JSON.
    """
    if value is None and may_be_null:
        return "", ""
    is_parts = isinstance(value, list) and all(isinstance(p, dict) and "type" in p for p in value)
    if may_be_any and not isinstance(value, str) and not is_parts:
        return checked_text(json.dumps(value, ensure_ascii=False), name), ""
    if not isinstance(value, list):
        return checked_text(value, name), ""
    texts: list[str] = []
    thoughts: list[str] = []
    for number, part in enumerate(value, 1):
        where = f"{name}[{number}]"
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in (*_TEXT_PARTS, *_THOUGHT_PARTS):
            refuse(where, part, "a part of type text; others (pictures, sound) are not learned")
        parts = texts if kind in _TEXT_PARTS else thoughts
        parts.append(checked_text(part.get("text", part.get(kind)), where))
    return "\n".join(texts), "\n".join(thoughts)


def _calls(message: Mapping[str, Any], name: str, schemas: _Schemas | None) -> Iterator[Call]:
    for key in CALLS:
        if message.get(key):
            where = f"{name}.{key}"
            yield from _listed_calls(*_structure(message[key], where, schemas), where)


def _structure(value: Any, name: str, schemas: _Schemas | None) -> tuple[Any, _Schemas | None]:
    """A value that may be JSON text, in which every null is meant."""
    return (parsed(value, name), None) if isinstance(value, str) else (value, schemas)


def _listed_calls(value: Any, schemas: _Schemas | None, name: str) -> Iterator[Call]:
    """Calls in OpenAI's form, or with name and arguments alone; one, or a list of them.

    Args:
        value: Of the field.
        schemas: Of their tools, where null may stand for a key that is absent.
        name: Of the field.
    """
    for number, call in enumerate(value if isinstance(value, list) else [value], 1):
        where = f"{name}[{number}]"
        given = call.get("function") or call if isinstance(call, dict) else call
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            refuse(where, call, "an object with name and arguments")
        found = (given[key] for key in ARGUMENTS if given.get(key))
        arguments: Any = next(found, {})
        if not isinstance(arguments, str):
            if schemas is not None:
                arguments = _allowed(arguments, schemas.get(given["name"]))
            arguments = json.dumps(arguments, ensure_ascii=False)
        yield Call(
            checked_text(given["name"], where), checked_text(arguments, where), _id(call.get("id"))
        )
