"""A program `codeql` that takes the arguments of CodeQL's manual and writes SARIF of its shape.

`database create` keeps the sources, `database analyze` finds lines with a known call. What the
manual marks as always written is written, and what it does not name ends with code 2.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

FINDS = {  # language -> call, rule, its tags
    "python": ("yaml.load(", "py/unsafe-deserialization", ["security", "external/cwe/cwe-502"]),
    "cpp": (
        "a[4]",
        "cpp/overflow-buffer",
        ["security", "external/cwe/cwe-119", "external/cwe/cwe-787"],
    ),
}
ENDINGS = {"python": "*.py", "cpp": "*.c"}


def create(given):
    database = Path(given.database)
    if database.exists():
        sys.exit(2)  # the manual: its parent must exist, the folder must not
    files = sorted(Path(given.source_root).glob(ENDINGS[given.language]))
    (database / "src").mkdir(parents=True)
    for file in files:
        shutil.copy(file, database / "src")
    (database / "codeql-database.yml").write_text(f"primaryLanguage: {given.language}\n")


def analyze(given):
    database = Path(given.database)
    language = (database / "codeql-database.yml").read_text().split()[-1]
    assert given.queries == [
        f"codeql/{language}-queries:codeql-suites/{language}-security-extended.qls"
    ]
    call, rule, tags = FINDS[language]
    results, artifacts = [], []
    for file in sorted((database / "src").iterdir()):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if call in line:
                place = {"uri": file.name, "uriBaseId": "%SRCROOT%", "index": len(artifacts)}
                region = {"startLine": number, "startColumn": 1, "endColumn": 2}
                physical = {"artifactLocation": place, "region": region}
                results.append({
                    "ruleId": rule, "ruleIndex": 0, "rule": {"id": rule, "index": 0},
                    "message": {"text": "found"}, "locations": [{"physicalLocation": physical}],
                    "partialFingerprints": {"primaryLocationLineHash": "39fa2ee980eb94b0:1"},
                })  # fmt: skip
                artifacts.append({"location": place})
    described = {
        "id": rule, "name": rule, "shortDescription": {"text": "one"},
        "fullDescription": {"text": "one"}, "defaultConfiguration": {"enabled": True},
        "properties": {"tags": tags, "kind": "problem", "precision": "high"},
    }  # fmt: skip
    driver = {"name": "CodeQL", "organization": "GitHub", "semanticVersion": "2.23.0"}
    run = {
        "tool": {"driver": {**driver, "rules": [described]}}, "artifacts": artifacts,
        "results": results, "newlineSequences": ["\r\n", "\n"], "columnKind": "utf16CodeUnits",
        "properties": {"semmle.formatSpecifier": given.format},
    }  # fmt: skip
    report = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0"}
    Path(given.output).write_text(json.dumps({**report, "runs": [run]}))


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    command = (
        parser.add_subparsers(required=True).add_parser("database").add_subparsers(required=True)
    )
    creating = command.add_parser("create")
    creating.add_argument("database")
    creating.add_argument("--language", required=True, choices=FINDS)
    creating.add_argument("--build-mode", choices=("none", "autobuild", "manual"), required=True)
    creating.add_argument("--source-root", default=".")
    creating.set_defaults(action=create)
    analyzing = command.add_parser("analyze")
    analyzing.add_argument("database")
    analyzing.add_argument("queries", nargs="+")
    analyzing.add_argument("--format", required=True, choices=("sarif-latest", "sarifv2.1.0"))
    analyzing.add_argument("--output", required=True)
    analyzing.set_defaults(action=analyze)
    given = parser.parse_args()
    given.action(given)


main()
