"""Findings as SARIF 2.1.0, within the limits of code scanning.

Every function in which a class was found is a result of that class's rule. Scores that no
temperature made probabilities are shown as they are, and the run says so.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any
from urllib.parse import quote

from trainer.prediction.extraction import MOST_BYTES
from trainer.prediction.fingerprints import FINGERPRINT, line_hashes
from trainer.prediction.ranked import ScoredFunction
from trainer.prediction.report import Report

MOST_RESULTS = 5000  # that code scanning shows of one run
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_ROOT = "%SRCROOT%"
_LEVELS = ((0.8, "error"), (0.5, "warning"), (0.0, "note"))  # least probability of each
_SEVERITY = "5.0"  # a score says how probable a weakness is, not how bad: the middle of 0 to 10
_CWE = re.compile(r"CWE-0*(\d+)", re.IGNORECASE)
_NOT_AN_ID = re.compile(r"[^A-Za-z0-9.-]+")
Json = dict[str, Any]


def write_sarif(report: Report, stream: IO[str], version: str) -> None:
    """Write the most probable findings; how many others there are is a notification.

    Args:
        version: Of focaltune.
    """
    rules = {name: place for place, name in enumerate(_classes(report))}
    results, num_left = list[Json](), 0
    most = min(report.top or MOST_RESULTS, MOST_RESULTS)
    hashes = _LineHashes(report)
    for one in report.ranked:
        for name in one.answer:
            if len(results) == most:
                num_left += 1
            else:
                results.append(_result(one, name, rules[name], hashes))
    about = "; ".join(f"{word}: {said}" for word, said in report.lines())
    notes = [_note("summary", about, "note")]
    if num_left:
        said = f"{num_left:,} less probable findings are not in this file, which has {most:,}"
        notes.append(_note("left-out", said, "warning"))
    driver = {
        "name": "focaltune",
        "version": version,
        "rules": [_rule(report, name) for name in rules],
        "notifications": [{"id": note["descriptor"]["id"]} for note in notes],
    }
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": "focaltune/"},
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": notes}],
        "originalUriBaseIds": {_ROOT: {"description": {"text": "The top of the source tree."}}},
        "columnKind": "utf16CodeUnits",
        "properties": report.facts(),
        "results": results,
    }
    log = {
        "properties": {"focaltune": "functions by rank"},
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [run],
    }
    json.dump(log, stream, indent=1, allow_nan=False)
    stream.write("\n")


def _classes(report: Report) -> list[str]:
    """The classes that are rules, by the names that answers have."""
    return list(report.about.facts["found_classes"])


def _rule(report: Report, name: str) -> Json:
    cwe = _CWE.search(name)
    tags = ["security", "model"]
    if cwe:
        tags.append(f"external/cwe/cwe-{int(cwe[1]):03}")
    said = "\n\n".join(f"{word}: {text}" for word, text in report.about.lines)
    help_text = (
        f"A trained model finds functions that look like those labelled {name!r} in its training"
        f" data. It names no line and gives no reason; read the function.\n\n{said}"
    )
    return {
        "id": _rule_id(name),
        "name": _NOT_AN_ID.sub("", name.title()) or "Finding",
        "shortDescription": {"text": f"A model takes the function for {name}."},
        "fullDescription": {"text": f"The model's score of {name!r} is above its threshold."},
        "help": {"text": help_text, "markdown": help_text},
        "defaultConfiguration": {"level": "warning"},
        "properties": {
            "tags": tags,
            "problem.severity": "warning",
            "security-severity": _SEVERITY,
        },
    }


def _rule_id(name: str) -> str:
    return f"focaltune/{_NOT_AN_ID.sub('-', name).strip('-').lower() or 'finding'}"


def _result(one: ScoredFunction, name: str, rule: int, hashes: "_LineHashes") -> Json:
    title = re.sub(r"([\\\[\]])", r"\\\1", one.function)  # brackets would be a link
    result: Json = {
        "ruleId": _rule_id(name),
        "ruleIndex": rule,
        "level": next(level for least, level in _LEVELS if one.probability >= least),
        "message": {"text": f"{title}: {name} with probability {one.probability:.2f}."},
        "rank": round(100 * one.probability, 4),
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(one.file), "uriBaseId": _ROOT},
                    "region": {"startLine": one.line, "endLine": one.end_line},
                },
                "logicalLocations": [{"fullyQualifiedName": one.function, "kind": "function"}],
            }
        ],
        "partialFingerprints": {FINGERPRINT: one.fingerprint},
        "properties": {"score": one.score, "probability": one.probability},
    }
    if (line_hash := hashes.of(one)) is not None:
        result["partialFingerprints"]["primaryLocationLineHash"] = line_hash
    if one.is_suppressed:
        said = "The function says focaltune: ignore."
        result["suppressions"] = [{"kind": "inSource", "justification": said}]
    return result


class _LineHashes:
    """Hashes of lines of the files of results; those of one file at a time are in memory."""

    def __init__(self, report: Report) -> None:
        self.root, self.found = report.root, dict[tuple[str, int], str]()
        wanted: dict[str, set[int]] = {}
        findings = (one for one in report.ranked if one.answer)
        for one in islice(findings, MOST_RESULTS):
            wanted.setdefault(one.file, set()).add(one.line)
        for file, lines in wanted.items():
            for line, digest in self._hashes(file):
                if line in lines:
                    self.found[file, line] = digest

    def _hashes(self, file: str) -> Iterator[tuple[int, str]]:
        try:
            with (self.root / file).open("rb") as stream:
                text = stream.read(MOST_BYTES).decode("utf-8", "replace")
        except OSError:  # it has gone since it was scored
            return iter(())
        return enumerate(line_hashes(text), start=1)

    def of(self, one: ScoredFunction) -> str | None:
        """Of a function's first line."""
        return self.found.get((one.file, one.line))


def _note(name: str, text: str, level: str) -> Json:
    return {"descriptor": {"id": f"focaltune/{name}"}, "level": level, "message": {"text": text}}
