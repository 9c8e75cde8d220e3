"""A chat template comes with a model folder from anywhere: it runs within bounds of time and size.

transformers' sandbox keeps a template from the program's objects; it lets one loop for hours and
fill the memory. Here every loop and macro looks at the clock, and every value that can grow is
measured before it is used. What a template writes is what it writes in transformers.
"""

import time
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from data.errors import TokenizerError

if TYPE_CHECKING:
    from jinja2 import Environment, Template, nodes

MOST_SECONDS = 20.0  # of the processor, for one conversation; templates take milliseconds
MOST_CHARACTERS = 1 << 26  # of any text or list that a template makes
_MOST_MADE = 1 << 28  # of all of them in one rendering, which blocks may keep
_LARGEST = 1 << 24  # of numbers, which become lengths
_STEP, _SIZED = " step", " sized"  # filters; no template can write these names
_RANDOM = "lipsum"  # a function of jinja: text at random, of any length


class TemplateRunsAwayError(TokenizerError):
    """A chat template that takes too long or makes too much."""


class _Bounds:
    """What the nodes that `_metered` adds to a template call."""

    def __init__(self) -> None:
        self._end, self._made = 0.0, 0

    def begin(self) -> None:
        """A rendering begins, in this thread."""
        self._end, self._made = time.thread_time() + MOST_SECONDS, 0

    def step(self, _: object = None) -> bool:
        """True; called in every round of a loop."""
        if time.thread_time() > self._end:
            raise TemplateRunsAwayError(
                f"the chat template runs for more than {MOST_SECONDS:g} seconds"
            )
        return True

    def sized(self, value: Any) -> Any:
        """The value, if it is not too large."""
        if isinstance(value, int):
            self._refuse(abs(value) > _LARGEST, "a number", abs(value))
        elif isinstance(value, str | list | tuple | dict):
            self._refuse(len(value) > MOST_CHARACTERS, "a value", len(value))
            self._made += len(value)
            self._refuse(self._made > _MOST_MADE, "all in all values", self._made)
        return value

    def product(self, operator: str, left: Any, right: Any) -> Any:
        """Left times right, or to the power of it: refused before it is too large."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            bits = abs(right) * left.bit_length()
            self._refuse(bits > 2 * _LARGEST.bit_length(), "a number", 1 << min(bits, 64))
        if operator == "*":
            times = [v for v in (left, right) if isinstance(v, int)]
            lengths = [len(v) for v in (left, right) if isinstance(v, str | list | tuple)]
            if times and lengths:
                length = times[0] * lengths[0]
                self._refuse(length > MOST_CHARACTERS, "a value", length)
        return self.sized(left**right if operator == "**" else left * right)

    def concat(self, pieces: Iterable[str]) -> str:
        """The pieces as one text."""
        kept, length = [], 0
        for piece in pieces:
            length += len(piece)
            self._refuse(length > MOST_CHARACTERS, "a text", length)
            kept.append(piece)
        return "".join(kept)

    def _refuse(self, is_too_large: bool, what: str, size: int) -> None:
        if is_too_large:
            raise TemplateRunsAwayError(f"the chat template makes {what} of size {size:,}")


@lru_cache(maxsize=4)
def bounded(template: str) -> "tuple[Template, _Bounds]":
    """A compiled chat template; call `begin` of its bounds before it renders.

    Raises:
        Exception: Any, where it cannot be compiled.
    """
    from jinja2 import Template

    environment, bounds = _sandbox()
    code = environment.compile(_metered(environment.parse(template)))
    return Template.from_code(environment, code, environment.make_globals(None)), bounds


def _sandbox() -> "tuple[Environment, _Bounds]":
    """transformers' environment, which it makes anew for every template, with bounds."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers.utils.chat_template_utils import _cached_compile_jinja_template

    class Bounded(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, _: Any, operator: str, left: Any, right: Any) -> Any:
            return bounds.product(operator, left, right)

        def call_filter(self, *given: Any, **options: Any) -> Any:  # for every value of a list
            bounds.step()
            return bounds.sized(super().call_filter(*given, **options))

        def concat(self, pieces: Iterable[str]) -> str:
            return bounds.concat(pieces)

    stock, bounds = _cached_compile_jinja_template("").environment, _Bounds()
    environment = Bounded(
        trim_blocks=stock.trim_blocks,
        lstrip_blocks=stock.lstrip_blocks,
        extensions=[type(extension) for extension in stock.extensions.values()],
        optimized=False,  # it would compute constants, however large
    )
    environment.globals = {name: value for name, value in stock.globals.items() if name != _RANDOM}
    environment.filters = stock.filters | {_STEP: bounds.step, _SIZED: bounds.sized}
    return environment, bounds


def _metered(template: "nodes.Template") -> Any:
    """The tree of a template with calls of `step` and `sized`."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    grown = (nodes.Concat, nodes.Add, nodes.Sub, nodes.Filter, nodes.Call)

    def call(name: str, given: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(given, name, [], [], None, None)

    def step() -> nodes.Filter:
        return call(_STEP, nodes.Const(None))

    class Meter(NodeTransformer):
        def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
            kept: Any = getattr(node, "call", None), getattr(node, "filter", None)  # of a block
            node = super().generic_visit(node, *args, **kwargs)
            if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
                node.body.insert(0, nodes.ExprStmt(step()))
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(step(), node.test)
            if isinstance(node, nodes.CallBlock):
                node.call = kept[0]
            elif isinstance(node, nodes.FilterBlock | nodes.AssignBlock):
                node.filter = kept[1]
            return call(_SIZED, node) if isinstance(node, grown) else node

        def visit_Const(self, node: nodes.Const) -> nodes.Node:
            if isinstance(node.value, int):
                _Bounds().sized(node.value)
            return node

    environment, metered = template.environment, Meter().visit(template)
    assert environment is not None
    metered.set_lineno(1)
    metered.set_environment(environment)
    return metered
