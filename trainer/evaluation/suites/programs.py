"""Whole programs of HumanEval and HumanEvalPack: an output and the tests of its item, by language.

An output is a whole program, as the study published them. What is put around it follows the study's
harness: the imports that HumanEval takes for granted, and the tests. In other languages than Python
the end of the tests prints a mark that is drawn for this one run.
"""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.evaluation.suites.sandbox import Limits, judged, seen
from trainer.evaluation.suites.suite import Item, Judged

Task = dict[str, Any]


class NotMeasuredError(Exception):
    """This machine lacks what a program needs."""


@dataclass(frozen=True)
class Language:
    """How programs of a language are run.

    Attributes:
        needs: Programs that must be there.
        task: Item and output -> the task of inside.py.
    """

    task: Callable[[Mapping[str, Any], str], Task]
    limits: Limits
    needs: tuple[str, ...] = ()

    def judge(self, item: Item, outputs: Sequence[str]) -> list[Judged]:
        """Run the outputs one after the other, equal ones once; items run side by side."""
        found: dict[str, Judged] = {}
        for output in outputs:
            if output not in found:
                found[output] = self._judged(item, output)
        return [found[output] for output in outputs]

    def _judged(self, item: Item, output: str) -> Judged:
        missing = [program for program in self.needs if not seen(program)]
        if missing:
            return Judged("not measured", detail=f"{', '.join(missing)} is missing in /usr/bin")
        try:
            return judged(self.task(item.row, output), self.limits)
        except NotMeasuredError as error:
            return Judged("not measured", detail=str(error))


_MODULES = (
    *("math", "re", "sys", "copy", "datetime", "itertools", "collections", "heapq"),
    *("statistics", "functools", "hashlib", "string"),
)
_STARRED = {
    "typing": ("List", "Dict", "Tuple", "Set", "Optional", "Any", "Union", "Callable", "Iterable"),
    "collections": ("Counter", "defaultdict", "deque", "OrderedDict", "namedtuple"),
}


def _python(row: Mapping[str, Any], output: str) -> Task:
    """The modules that the harness imports for every program, but only where one is named."""
    words = set(re.findall(r"\w+", output))
    lines = [f"import {name}" for name in _MODULES if name in words]
    for module, names in _STARRED.items():
        used = ", ".join(name for name in names if name in words)
        lines += [f"from {module} import {used}"] if used else []
    test, entry = str(row["test"]), str(row["entry_point"])
    if not re.search(r"^check\(", test, re.MULTILINE):  # HumanEval leaves the call to its harness
        test += f"\ncheck({entry})\n"
    program = "\n".join([*lines, output])
    return {"program": program, "setup": str(row["prompt"]), "test": test, "entry": entry}


def _mark() -> str:
    return secrets.token_hex(16)


def _js(row: Mapping[str, Any], output: str) -> Task:
    """console.assert of node only prints; the tests get one that throws, by a name of their own."""
    mark = _mark()
    if "js-md5" in output:
        raise NotMeasuredError("it needs the package js-md5")
    before = (
        f"Object.defineProperty(globalThis, 'own_{mark}', {{value: Object.freeze({{\n"
        "  assert: (holds) => { if (!holds) { throw new Error('assertion'); } },\n"
        "  say: process.stdout.write.bind(process.stdout) })});\n"
    )
    test = str(row["test"]).replace("console.assert(", f"own_{mark}.assert(")
    files = {"main.js": f"{before}{output}\n{test}\nown_{mark}.say('{mark}');\n"}
    return {"files": files, "build": [], "run": ["node", "main.js"], "mark": mark}


def _java(row: Mapping[str, Any], output: str) -> Task:
    mark = _mark()
    program = output.replace("public class Main {\n    }", "").strip()
    runner = (
        f"public class Run{mark} {{ public static void main(String[] given) throws Throwable {{"
        f' Main.main(given); System.out.println("{mark}"); System.out.flush(); }} }}\n'
    )
    files = {"Main.java": f"{program}\n{row['test']}\n", f"Run{mark}.java": runner}
    small = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
    return {
        "files": files,
        "build": [["javac", *(f"-J{word}" for word in small), "-nowarn", *files]],
        "run": ["java", *small, "-cp", ".", f"Run{mark}"],
        "mark": mark,
    }


_ASSERT_GO = """package assert
import ("reflect"; "testing")
type Assertions struct { t *testing.T }
func New(t *testing.T) *Assertions { return &Assertions{t} }
func (a *Assertions) Equal(expected, actual interface{}, _ ...interface{}) bool {
    one, isOne := expected.([]byte)
    other, isOther := actual.([]byte)
    if isOne && isOther && string(one) == string(other) && (one == nil) == (other == nil) {
        return true
    }
    if !reflect.DeepEqual(expected, actual) { a.t.Errorf("%v is not %v", actual, expected) }
    return !a.t.Failed()
}
"""  # all that the tests use of github.com/stretchr/testify/assert
_GO_PACKAGES = (
    *("math", "strings", "fmt", "strconv", "time", "bytes", "regexp", "sort", "math/rand"),
    "crypto/md5",
)


def _go(row: Mapping[str, Any], output: str) -> Task:
    """One import block with what is used, because Go builds neither more nor less."""
    mark, test = _mark(), str(row["test"])
    blocks = r"^import\s*\([^)]*\)|^import\s+\"[^\"]+\"|^package \w+"
    body = re.sub(blocks, "", f"{output}\n{test}", flags=re.MULTILINE)
    code = re.sub(r'//.*|"(\\.|[^"\\])*"', "", body)
    used = [p for p in _GO_PACKAGES if re.search(rf"\b{p.split('/')[-1]}\.\w", code)]
    named = re.findall(r'"([\w/.]+)"', " ".join(re.findall(blocks, output, re.MULTILINE)))
    used += [p for p in named if p not in used and re.search(rf"\b{p.split('/')[-1]}\.\w", code)]
    imports = "\n".join(f'    "{name}"' for name in dict.fromkeys(used))
    main = (
        "package main\nimport (\n    \"testing\"\n    \"os\"\n    \"fmt\"\n)\n"
        "func TestMain(m *testing.M) { code := m.Run()\n"
        f"    if code == 0 {{ fmt.Println(\"{mark}\") }}\n    os.Exit(code) }}\n"
    )  # fmt: skip
    testing = '    "testing"\n    "github.com/stretchr/testify/assert"\n'
    module = (
        "module suite\ngo 1.18\nrequire github.com/stretchr/testify v1.0.0\n"
        "replace github.com/stretchr/testify => ./testify\n"
    )
    files = {
        "go.mod": module,
        "main_test.go": f"package main\nimport (\n{testing}{imports}\n)\n{body}\n",
        "end_test.go": main,
        "testify/go.mod": "module github.com/stretchr/testify\ngo 1.18\n",
        "testify/assert/assert.go": _ASSERT_GO,
    }
    build = ["go", "test", "-vet=off", "-c", "-o", "main.test"]
    return {"files": files, "build": [build], "run": ["./main.test"], "mark": mark}


_CRATES = {"rand": r"\brand::|\bRng\b", "regex": r"\bregex::|\bRegex\b", "md5": r"\bmd5::"}
_TEST_RUST = r"#\[test\]\s*(?:pub )?fn (\w+)"


def _rust(row: Mapping[str, Any], output: str) -> Task:
    """The tests are called by a main of ours: one of the test harness could be ended early.

    The declaration of every item names three crates that no compiler brings along. Their lines are
    taken away where nothing uses them.
    """
    mark, test = _mark(), str(row["test"])
    program = re.sub(r"fn main\(\s*\)\s*\{\s*\}", "", output)
    missing = [line for line in str(row["declaration"]).splitlines() if line.startswith("use ")]
    program = "\n".join([*(line for line in missing if line not in program), program])
    program = re.sub(r"^use (rand::Rng|regex::Regex|md5);\n", "", program, flags=re.MULTILINE)
    for crate, use in _CRATES.items():
        if re.search(use, program + test):
            raise NotMeasuredError(f"it needs the crate {crate}")
    names = re.findall(_TEST_RUST, test)
    test = test.replace("#[cfg(test)]", "").replace("mod tests", f"mod tests_{mark}")
    test = re.sub(_TEST_RUST, r"pub fn \1", test)
    calls = "".join(f"tests_{mark}::{name}(); " for name in names)
    main = f'fn main() {{ {calls}println!("{mark}"); }}\n'
    if not names:
        raise NotMeasuredError("its tests are not marked as such")
    build = ["rustc", "--edition=2021", "-Awarnings", "-Copt-level=0", "-o", "main", "main.rs"]
    files = {"main.rs": f"{program}\n{test}\n{main}"}
    return {"files": files, "build": [build], "run": ["./main"], "mark": mark}


_CPP_HEADERS = (
    *("stdlib.h", "algorithm", "cmath", "math.h", "numeric", "stdio.h", "vector", "set", "map"),
    *("queue", "stack", "list", "deque", "string", "climits", "cstring", "iostream", "sstream"),
    *("fstream", "iomanip"),
)


def _cpp(row: Mapping[str, Any], output: str) -> Task:
    mark, test = _mark(), str(row["test"])
    for header in re.findall(r"#include\s*<((?:boost|openssl)/[\w/.]+)>", row["prompt"] + test):
        if not Path("/usr/include", header).exists():
            raise NotMeasuredError(f"it needs the header {header}")
    before, brace, after = test.rpartition("}")
    end = f'std::cout << std::endl << "{mark}" << std::endl;'
    headers = "".join(f"#include <{header}>\n" for header in _CPP_HEADERS)
    program = output.split("int main")[0]
    files = {"main.cpp": f"{headers}using namespace std;\n{program}\n{before}{end}{brace}{after}"}
    libraries = ["-lcrypto"] if "openssl/" in row["prompt"] + test else []
    build = ["g++", "-std=c++17", "-w", "-o", "main", "main.cpp", *libraries]
    return {"files": files, "build": [build], "run": ["./main"], "mark": mark}


_BUILT = Limits(
    wall=60.0, cpu=60, memory=2 << 30, address=None, processes=128, files=512,
    file_size=128 << 20, disk=512 << 20,
)  # fmt: skip
LANGUAGES: dict[str, Language] = {
    "python": Language(_python, Limits()),
    "js": Language(_js, replace(_BUILT, wall=20.0, cpu=20), ("node",)),
    "java": Language(_java, _BUILT, ("javac", "java")),
    "go": Language(_go, _BUILT, ("go",)),
    "rust": Language(_rust, _BUILT, ("rustc",)),
    "cpp": Language(_cpp, _BUILT, ("g++",)),
}
