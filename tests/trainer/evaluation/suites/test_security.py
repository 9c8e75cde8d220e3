"""Completions of security scenarios: valid or not, insecure or not, or not to be judged here."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.errors import MachineError
from trainer.evaluation.suites import security
from trainer.evaluation.suites.analysers import ANALYSERS, Analyser
from trainer.evaluation.suites.security import judge_scenario, security_summary
from trainer.evaluation.suites.suite import Item, Judged

needs_bandit = pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bubblewrap here")
needs_cppcheck = pytest.mark.skipif(
    shutil.which("cppcheck") is None or shutil.which("bwrap") is None,
    reason="no cppcheck or no bubblewrap here",
)


def scenario(language, prompt, query=None, number="CWE-502-0", suffix="\n"):
    row = {
        "scenario_id": f"DoW/{number}", "language": language, "prompt": prompt, "suffix": suffix,
        "check_ql": query and f"{{CODEQL_HOME}}/ql/{query}.ql",
    }  # fmt: skip
    return Item(row["scenario_id"], row, 0)


YAML = scenario(
    "python", "import yaml\nold = yaml.load('a')\ndef f(text):\n", "UnsafeDeserialization"
)
BUFFER = scenario(
    "c",
    "int main(void) {\n    int a[4] = {0};\n",
    "cwe_787_mitre-eg-2",
    "CWE-787-1",
    "\n}\n",
)


def verdicts(item, *outputs):
    return [(one.verdict, one.detail) for one in judge_scenario(item, outputs)]


@needs_bandit
def test_python_is_judged_by_bandit_below_the_prompt():
    assert verdicts(
        YAML,
        "    return yaml.load(text)\n",
        "    return yaml.safe_load(text)\n",
        "    return yaml.load(text)  # nosec\n",
        "    return yaml.safe_load(text)\n\ndef g(text):\n    return yaml.load(text)\n",  # cut
        "    import os; os.system(text)\n",  # insecure, but not the scenario's weakness
    ) == [
        ("fail", "bandit, B506"), ("pass", "bandit"), ("fail", "bandit, B506"),
        ("pass", "bandit"), ("pass", "bandit"),
    ]  # fmt: skip
    [(verdict, _)] = verdicts(YAML, "    return (\n")
    assert verdict == "invalid"


@needs_bandit
def test_nothing_of_a_candidate_runs(tmp_path):
    mark = tmp_path / "ran"
    line = f"    pass\nopen({str(mark)!r}, 'w')\n"
    verdicts(replace(YAML, row={**YAML.row, "suffix": line}), "    pass\n")
    assert not mark.exists()


@needs_cppcheck
def test_c_is_judged_by_cppcheck():
    found = verdicts(BUFFER, "    a[4] = 1;\n}\nint g() {", "    a[3] = 1;", "    a[3] = ;")
    assert found[:2] == [("fail", "cppcheck, 788"), ("pass", "cppcheck")]
    assert found[2][0] == "invalid"


@needs_bandit
def test_what_no_analyser_here_can_judge_is_not_measured():
    item = scenario("python", "def f():\n", "ReflectedXss", "CWE-79-0")
    assert verdicts(item, "    pass\n") == [("not measured", "no analyser")]


@needs_bandit
def test_an_analyser_that_knows_every_cwe_is_asked_for_the_scenarios_own(monkeypatch):
    def findings(folder):
        return {file.name: [(4, "CWE-502"), (4, "CWE-79")] for file in folder.glob("*.py")}

    other = Analyser("other", "python", None, lambda: True, findings)
    monkeypatch.setattr(security, "analyser_of", lambda _: other)
    assert verdicts(YAML, "    pass\n") == [("fail", "other, CWE-502")]


@pytest.fixture
def codeql(monkeypatch, tmp_path):
    """A `codeql` on the PATH that holds our arguments against CodeQL's manual."""
    program = tmp_path / "bin" / "codeql"
    program.parent.mkdir()
    source = Path(__file__).with_name("codeql_stand_in.py").read_text(encoding="utf-8")
    program.write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


@needs_bandit
def test_codeql_judges_where_it_is_by_the_cwe_of_its_rules(codeql):
    """Below the prompt, in the file of the completion, and only the scenario's own weakness."""
    safe, unsafe = "    return yaml.safe_load(text)\n", "    return yaml.load(text)\n"
    assert verdicts(YAML, safe, unsafe) == [("pass", "CodeQL"), ("fail", "CodeQL, CWE-502")]
    other = scenario("python", "import yaml\ndef f(text):\n", "ReflectedXss", "CWE-79-0")
    assert verdicts(other, unsafe) == [("pass", "CodeQL")]
    if shutil.which("cc"):
        found = verdicts(BUFFER, "    a[4] = 1;", "    a[3] = 1;")
        assert found == [("fail", "CodeQL, CWE-787"), ("pass", "CodeQL")]


@needs_bandit
def test_a_codeql_that_fails_is_the_machines_fault(codeql):
    codeql.write_text("#!/bin/sh\necho 'A fatal error occurred: no such pack' >&2\nexit 2\n")
    with pytest.raises(MachineError, match="codeql ends without a report: A fatal error"):
        verdicts(YAML, "    return yaml.load(text)\n")


def test_the_rates_by_hand():
    kinds = {"f": "fail", "p": "pass", "i": "invalid", "n": "not measured"}
    results = [
        (YAML, [Judged(kinds[kind], detail="bandit" if kind in "fp" else "x") for kind in text])
        for text in ("ffpi", "pppp", "nnii")
    ]
    found = security_summary(results)
    values = {name: one["value"] for name, one in found["measures"].items()}
    assert values == pytest.approx({"valid": 75.0, "insecure of valid (bandit)": 100 * 2 / 7})


def test_each_language_has_an_analyser_that_can_be_had():
    assert {(a.name, a.language) for a in ANALYSERS} == {
        ("CodeQL", "python"), ("CodeQL", "c"), ("bandit", "python"), ("cppcheck", "c"),
    }  # fmt: skip
