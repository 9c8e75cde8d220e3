"""The audit as Markdown: verdicts first, then the tables behind them."""

import functools
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.audit.facts import SEVERITIES, AuditFacts
from data.text.escaping import markdown, markdown_block, markdown_code

if TYPE_CHECKING:
    from jinja2 import Template

_PAGE = Path(__file__).with_name("audit.md.jinja")


def render(facts: AuditFacts, figure: str | None) -> str:
    """The whole page; `figure` is the name of the picture of lengths beside it."""
    return fill(
        _PAGE,
        facts=facts,
        headline=headline(facts),
        contradictory={shared.where: shared.num_things for shared in facts.contradictions},
        figure=figure,
    )


def fill(template: Path, **values: Any) -> str:
    """A Markdown page from its template; `markdown` writes every value not marked as safe."""
    page = compiled(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


@functools.cache
def compiled(template: Path) -> "Template":
    """A template that `fill` fills."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=markdown
    )
    environment.filters |= {"shown": format, "code": markdown_code, "block": markdown_block}
    return environment.from_string(template.read_text(encoding="utf-8"))


def headline(facts: AuditFacts) -> str:
    """ "2 leaks, 1 warning, 3 notes"."""
    if not facts.findings:
        return "Nothing was found."
    counts = Counter(finding.severity for finding in facts.findings)
    return ", ".join(f"{counts[s]} {s}{'' if counts[s] == 1 else 's'}" for s in SEVERITIES)
