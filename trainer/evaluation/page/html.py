"""HTML that makes no request: pages from templates, Markdown and pictures of ours."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.text.escaping import escaped

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

_HERE = Path(__file__).parent
_PICTURE = re.compile(r"[\w.-]+\.svg")


def page_template(path: Path) -> "Template":
    """A page from its template: every value is escaped, and cannot drive a terminal either."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def plain(value: Any) -> Any:
        is_text = isinstance(value, str) and not isinstance(value, Markup)
        return escaped(value) if is_text else value

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=FileSystemLoader([path.parent, _HERE]), finalize=plain,
    )  # fmt: skip
    return environment.get_template(path.name)


def as_html(text: str, folder: Path) -> "Markup":
    """Markdown of ours as HTML a level deeper, its pictures drawn in place.

    Markup in the user's text is escaped in the Markdown already; links and HTML are not read.
    """
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    def picture(_: Any, tokens: Sequence[Any], place: int, *__: Any) -> str:
        path = folder / str(tokens[place].attrs["src"])
        is_ours = _PICTURE.fullmatch(path.name) and path.is_file()  # older reports have PNGs
        return inlined(path.read_text("utf-8")) if is_ours else ""

    def table(_: Any, tokens: Sequence[Any], place: int, *__: Any) -> str:
        row = itertools.takewhile(lambda token: token.type != "tr_close", tokens[place:])
        kind = "" if any(token.attrs for token in row) else " text"  # no column of numbers
        return f'<div class="scroll{kind}"><table>\n'

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.disable(["link", "autolink", "reference"])
    parser.add_render_rule("image", picture)
    parser.add_render_rule("table_open", table)
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type.startswith("heading_"):
            token.tag = f"h{int(token.tag[1]) + 1}"
    html = parser.renderer.render(tokens, parser.options, {})
    before, heading, facts = html.rpartition("<h3>Facts</h3>\n")  # for those who look for them
    folded = f"<details><summary>Facts</summary>\n{facts}</details>" if heading else facts
    return Markup(before + folded)


def inlined(picture: str) -> "Markup":
    """An SVG of ours inside HTML, where its elements need no namespaces."""
    from markupsafe import Markup

    bare = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", picture)
    return Markup(bare.replace(" xlink:href=", " href="))
