"""YAML as recipes need it: strict, small, every fault with its line."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from data.errors import file_text, parsing
from data.readers.reading import quote
from trainer.errors import ConfigError

_MOST_BYTES = 1 << 20  # of a recipe; the longest of ours has 3 KB
_MOST_VALUES, _DEEPEST = 10_000, 30  # ours have 100 values, 3 deep
_QUOTE = "correct the line; quote what is meant as text"


class _StrictLoader(yaml.SafeLoader):
    """YAML that reads 1e-4 as a number, refuses a key given twice, and stays small.

    An alias counts as all that it repeats: nine levels of nine aliases are 400 million values.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_values = self._depth = 0
        self._sizes: dict[str, int] = {}  # of finished anchors

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next value of the file, counted."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._num_values
        anchor, where = getattr(event, "anchor", None), _line(event)
        if isinstance(event, yaml.AliasEvent) and anchor in self.anchors:
            if anchor not in self._sizes:
                raise ConfigError(f"{where}: {anchor!r} holds itself; write the value out")
            self._num_values += self._sizes[anchor]
        self._num_values += 1
        self._depth += 1
        if self._num_values > _MOST_VALUES or self._depth > _DEEPEST:
            raise ConfigError(
                f"{where}: more than {_MOST_VALUES} values, aliases written out, or brackets"
                f" {_DEEPEST} deep; a recipe holds a few sections of keys"
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None:
            self._sizes[anchor] = self._num_values - before
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value, whose faults have their line."""
        written = quote(node.value) if isinstance(node.value, str) else "a value"
        with parsing(f"{_line(node)}: {written} is not YAML", ConfigError, _QUOTE):
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > 64:  # a longer one has no repr
                raise OverflowError("a number above 64 bits")
            return value


def _line(read: yaml.Event | yaml.Node) -> str:
    assert read.start_mark is not None  # only of a mark that a program makes
    return f"line {read.start_mark.line + 1}"


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key, where = loader.construct_object(key_node, deep=True), _line(key_node)
        if not isinstance(key, Hashable):
            raise ConfigError(f"{where}: a YAML key is not a string; is a placeholder unfilled?")
        if key in seen:
            raise ConfigError(f"{where}: key {key!r} appears twice; keep one")
        seen.add(key)
    return dict(loader.construct_pairs(node, deep=True))


_StrictLoader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates
)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(text: str, where: str) -> Any:
    """What a YAML text holds.

    Raises:
        ConfigError: It begins with `where`.
    """
    try:
        with parsing("not YAML", ConfigError, _QUOTE):
            return yaml.load(text, Loader=_StrictLoader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def read_yaml_file(path: Path) -> Any:
    """What a small YAML file holds.

    Raises:
        ConfigError: It begins with the path.
    """
    text = file_text(path, ConfigError, "give a recipe, saved as UTF-8", _MOST_BYTES)
    return read_yaml(text, str(path))
