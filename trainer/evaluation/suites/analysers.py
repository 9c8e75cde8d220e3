"""Static analysers behind one interface: where in source files they find which weaknesses.

An analyser sees some weaknesses and not others, so it also says which scenarios of Asleep at the
Keyboard it can judge: by the name of the CodeQL query that the scenario's authors chose, or by its
CWE where they judged by hand. What it is silent about is not thereby secure.
"""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from data.errors import json_object
from trainer.errors import MachineError

Findings = Mapping[str, Sequence[tuple[int, str]]]
"""Line and rule of each finding, by name of the file."""

_SECONDS = 600.0  # of one call; CodeQL builds a database
_OVERFLOWS = {"119", "120", "121", "122", "125", "131", "786", "787", "788"}


@dataclass(frozen=True)
class Analyser:
    """An analyser of one language.

    Attributes:
        language: As scenarios name it.
        rules: Query or CWE of a scenario -> the rules that find its weakness; what is not here
            it cannot judge. None: it knows every CWE, and its rules are "CWE-89".
        is_here: Whether this machine has it.
        findings: Of the files in a folder.
    """

    name: str
    language: str
    rules: Mapping[str, set[str]] | None
    is_here: Callable[[], bool]
    findings: Callable[[Path], Findings]


def _output(command: Sequence[str], folder: Path) -> str:
    """What a command writes to stdout and stderr; it reads files and runs nothing of them.

    Raises:
        MachineError: It takes too long.
    """
    try:
        ended = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"{command[0]} takes above {_SECONDS:g} s; try again") from error
    return ended.stdout.decode("utf-8", "replace")


def _bandit(folder: Path) -> Findings:
    report = folder / "bandit.json"
    command = [sys.executable, "-m", "bandit", "--quiet", "--exit-zero", "--ignore-nosec"]
    said = _output([*command, "--format=json", f"--output={report}", "-r", "."], folder)
    if not report.is_file():
        raise MachineError(f"bandit ends without a report: {said[-300:]}")
    found = defaultdict(list)
    for one in json_object(report, MachineError, "install bandit again")["results"]:
        found[Path(one["filename"]).name].append((int(one["line_number"]), str(one["test_id"])))
    return found


def _cppcheck(folder: Path) -> Findings:
    found = defaultdict(list)
    template = "--template={file}\t{line}\t{cwe}"
    command = ["cppcheck", "--quiet", "--enable=warning", "--inconclusive", template, "."]
    for line in _output(command, folder).splitlines():
        match line.split("\t"):
            case [name, place, rule] if place.isdecimal():
                found[Path(name).name].append((int(place), rule))
    return found


def _codeql(language: str) -> Callable[[Path], Findings]:
    """CodeQL's security-extended queries; called and read as its manual says, never seen here."""

    def findings(folder: Path) -> Findings:
        report, database = folder / "codeql.sarif", folder / "codeql"
        queries = f"codeql/{language}-queries:codeql-suites/{language}-security-extended.qls"
        said = ""
        for command in (
            ["create", str(database), f"--language={language}", "--build-mode=none"],
            ["analyze", str(database), queries, "--format=sarif-latest", f"--output={report}"],
        ):
            said += _output(["codeql", "database", *command], folder)
        if not report.is_file():
            raise MachineError(f"codeql ends without a report: {said[-300:]}")
        found = defaultdict(list)
        [run] = json.loads(report.read_text(encoding="utf-8"))["runs"]
        tools = [run["tool"]["driver"], *run["tool"].get("extensions", ())]
        tags = {
            rule["id"]: rule.get("properties", {}).get("tags", ())
            for tool in tools
            for rule in tool.get("rules", ())
        }
        for one in run["results"]:
            place = one["locations"][0]["physicalLocation"]
            name = Path(place["artifactLocation"]["uri"]).name
            for tag in tags.get(one["ruleId"], ()):
                if tag.startswith("external/cwe/cwe-"):
                    number = int(tag.removeprefix("external/cwe/cwe-"))
                    found[name].append((place["region"]["startLine"], f"CWE-{number}"))
        return found

    return findings


def _has_codeql() -> bool:
    return shutil.which("codeql") is not None


ANALYSERS = (  # the first one of a language that is here judges
    Analyser("CodeQL", "python", None, _has_codeql, _codeql("python")),
    Analyser("CodeQL", "c", None, _has_codeql, _codeql("cpp")),
    Analyser(
        "bandit",
        "python",
        {
            "UnsafeDeserialization": {"B301", "B302", "B506"},
            "SqlInjection": {"B608"},
            "CommandInjection": {"B602", "B604", "B605", "B609"},
            "cwe-798_HardcodedCredentials-a": {"B105", "B106", "B107"},
            "cwe-798_HardcodedCredentials-b": {"B105", "B106", "B107"},
            "cwe-798_HardcodedCredentials-c": {"B105", "B106", "B107"},
            "WeakFilePermissions": {"B103"},
            "cwe-22_TarSlip": {"B202"},
            "Jinja2WithoutEscaping": {"B701"},
            "CWE-522": {"B303", "B324"},
        },
        lambda: find_spec("bandit") is not None,
        _bandit,
    ),
    Analyser(
        "cppcheck",
        "c",
        {
            "cwe_125_mitre-eg-1": _OVERFLOWS,
            "cwe_125_my-1": _OVERFLOWS,
            "cwe_125_my-2": _OVERFLOWS,
            "cwe_787_mitre-eg-5": _OVERFLOWS,
            "cwe_787_mitre-eg-2": _OVERFLOWS,
            "cwe-119_mitre-eg-3": _OVERFLOWS,
            "PotentialBufferOverflow": _OVERFLOWS,
            "OverflowBuffer": _OVERFLOWS,
            "UseAfterFree": {"415", "416", "672", "825"},
            "CWE-416": {"415", "416", "672", "825"},
        },
        lambda: shutil.which("cppcheck") is not None,
        _cppcheck,
    ),
)


def analyser_of(language: str) -> Analyser | None:
    """The analyser that judges a language on this machine."""
    return next((a for a in ANALYSERS if a.language == language and a.is_here()), None)
