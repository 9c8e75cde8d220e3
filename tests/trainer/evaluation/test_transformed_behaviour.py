"""Transformed functions do what they did, by the word of lexers, compilers and interpreters."""

import gzip
import io
import json
import re
import shutil
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from conftest import REPOSITORY, sample_rows
from tree_sitter import Language, Parser

from trainer.evaluation.robustness.languages import parsed
from trainer.evaluation.robustness.transformations import TRANSFORMATIONS, transformed

SHARED = REPOSITORY.parent / "shared" / "data"
JAVAC = ["javac", "-J-XX:TieredStopAtLevel=1"]  # it starts sooner
SAME_CODE = ("names", "comments", "layout")  # what a compiler makes of them is the same
EMBEDDED = {
    language: [
        str(row["code"])
        for row in sample_rows("test", 10_000, 10**6)
        if row["language"] == language
    ][:100]
    for language in ("c", "java", "python")
}
TOKEN = re.compile(
    r"""(?P<gap>\s+|//[^\n]*|/\*.*?\*/)|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'"""
    r"""|[A-Za-z_$][\w$]*|\d[\w.]*|->|[^\w\s]""",
    re.DOTALL,
)


@cache
def after(language: str, code: str, name: str) -> str | None:
    found = parsed(code, language)
    assert found is not None, code
    return transformed(found, name)


def pairs(language: str, name: str) -> list[tuple[str, str]]:
    """Embedded functions that a transformation changes, before and after."""
    both = [(code, after(language, code, name)) for code in EMBEDDED[language]]
    return [(code, new) for code, new in both if new is not None]


def words(code: str) -> list[str]:
    """Tokens of C or Java without comments and blanks."""
    found = list(TOKEN.finditer(code))
    assert "".join(match[0] for match in found) == code
    return [match[0] for match in found if match["gap"] is None]


def new_names(before: str, after: str) -> dict[str, str]:
    """The new name of each name that changed; it is no other's, and was nowhere before."""
    old, new = words(before), words(after)
    changes = {(a, b) for a, b in zip(old, new, strict=True) if a != b}
    names = dict(changes)
    assert len(names) == len(changes) == len(set(names.values()))
    assert not set(names.values()) & set(old)
    return names


def code_objects(code: CodeType) -> Iterator[tuple[object, ...]]:
    """All that a compiled function does; its variables are numbers there."""
    constants = [c for c in code.co_consts if not isinstance(c, CodeType | tuple)]
    yield code.co_code, code.co_names, code.co_argcount, code.co_kwonlyargcount, constants
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_objects(constant)


def compiled(code: str) -> list[tuple[object, ...]]:
    return list(code_objects(compile(code, "f", "exec")))


def run(command: list[str], folder: Path, *, fails: bool = False) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert fails or done.returncode == 0, done.stderr[-3000:]
    return done


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("language", EMBEDDED)
def test_embedded_functions_parse_again_without_an_error(language, name):
    module = __import__(f"tree_sitter_{language}")
    parser = Parser(Language(module.language()))
    changed = pairs(language, name)
    assert len(changed) >= {"order": language == "c", "comments": 30}.get(name, 95)
    for before, new in changed:
        around = (
            ("class X {", "}") if parser.parse(before.encode()).root_node.has_error else ("", "")
        )
        assert not parser.parse(new.join(around).encode()).root_node.has_error, new


@pytest.mark.parametrize("name", SAME_CODE)
def test_python_compiles_embedded_functions_to_the_same_code(name):
    for before, new in pairs("python", name):
        assert compiled(before) == compiled(new)
        kinds = {token.type for token in tokenize.generate_tokens(io.StringIO(new).readline)}
        assert tokenize.COMMENT not in kinds or name != "comments"


@pytest.mark.parametrize("name", SAME_CODE)
@pytest.mark.parametrize("language", ["c", "java"])
def test_embedded_functions_are_the_same_words_but_for_own_names(language, name):
    for before, new in pairs(language, name):
        if name != "names":
            assert words(before) == words(new)
            assert name != "comments" or not re.search(r"^\s*(//|/\*)", new, re.MULTILINE)
            continue
        own = new_names(before, new)
        old = ["", *words(before), ""]
        for place, (word, changed) in enumerate(zip(old[1:-1], words(new), strict=True), 1):
            is_other = old[place - 1] in (".", "->") or old[place + 1] == "("
            assert is_other == (changed == word) or word not in own, (word, new)


@pytest.mark.parametrize("language", EMBEDDED)
def test_embedded_statements_change_places_only_where_neither_names_what_the_other_sets(language):
    for before, new in pairs(language, "order"):
        old_lines, new_lines = before.splitlines(), new.splitlines()
        moved = [n for n, line in enumerate(old_lines) if line != new_lines[n]]
        for first, second in zip(moved[::2], moved[1::2], strict=True):
            assert old_lines[first : second + 1] == new_lines[first : second + 1][::-1]
            one, two = old_lines[first], old_lines[second]
            assert not re.search(r"[(.>]", one + two)
            target = r"(\w+)(\[\d+\])?\s*(=|[-+]=|\+\+|--|;)"
            set_one, set_two = (re.search(target, line)[1] for line in (one, two))
            assert set_one not in words(two)
            assert set_two not in words(one)


# javac and gcc read on after an error. Types and functions that a lone function lacks are errors;
# a name that was missed, or that meant something else, would be one more.
def diagnostics(text: str, pattern: str) -> dict[int, Counter[str]]:
    found: dict[int, Counter[str]] = {}
    for match in re.finditer(pattern, text, re.MULTILINE):
        found.setdefault(int(match[1]), Counter())[match[2]] += 1
    return found


def javac_errors(folder: Path, functions: list[str]) -> dict[int, Counter[str]]:
    parts, number = [], 1
    starts = []
    for place, function in enumerate(functions):
        text = f"class X{place} {{\n{function}\n}}\n"
        starts.append(number)
        number += text.count("\n")
        parts.append(text)
    (folder / "All.java").write_text("".join(parts))
    options = ["-proc:none", "-Xmaxerrs", "99999", "-d", str(folder)]
    text = run([*JAVAC, *options, "All.java"], folder, fails=True).stderr
    found: dict[int, Counter[str]] = {}
    for block in re.split(r"^All\.java:", text, flags=re.MULTILINE)[1:]:
        line, _, message = block.partition(": error: ")
        place = sum(start <= int(line) for start in starts) - 1
        said = [message.splitlines()[0], *re.findall(r"symbol: +(.*)", message)]
        found.setdefault(place, Counter())[" ".join(said)] += 1
    return found


def gcc_errors(folder: Path, functions: list[str]) -> dict[int, Counter[str]]:
    text = "".join(f'#line 1 "f{n}"\n{function}\n' for n, function in enumerate(functions))
    (folder / "all.c").write_text(text)
    options = ["-std=gnu11", "-fsyntax-only", "-fmax-errors=0", "-fno-diagnostics-show-caret"]
    said = run(["gcc", *options, "-fno-diagnostics-color", "all.c"], folder, fails=True).stderr
    return diagnostics(said, r"^f(\d+):\d+:\d+: error: (.*)$")


COMPILERS: dict[str, Callable[[Path, list[str]], dict[int, Counter[str]]]] = {
    "c": gcc_errors,
    "java": javac_errors,
}


@pytest.mark.parametrize(
    "language",
    [pytest.param("c", marks=needs("gcc")), pytest.param("java", marks=needs("javac"))],
)
def test_a_compiler_says_the_same_of_embedded_functions_before_and_after(language, tmp_path):
    before, new, own = [], [], []
    for name, num in (("names", 40), ("dead code", 12), ("order", 12)):
        for old, one in pairs(language, name)[:num]:
            before.append(old)
            new.append(one)
            own.append(new_names(old, one) if name == "names" else {})
    said, said_again = (COMPILERS[language](tmp_path, functions) for functions in (before, new))
    assert len(said) > 40  # it did say something
    for place, names in enumerate(own):
        expected = Counter(
            re.sub(r"\w+", lambda m, names=names: names.get(m[0], m[0]), message)
            for message in said.get(place, Counter()).elements()
        )
        assert said_again.get(place, Counter()) == expected, new[place]


# -- functions that run ------------------------------------------------------------------------

PYTHON = {
    "shadow": '''
def shadow(values, limit=3):
    """Sum # of values."""
    total = 0  # so far
    seen = []
    for index, value in enumerate(values):
        if value > limit:
            seen.append([value for value in range(value) if value % 2])
        total += index * value
    def add(values, extra=limit):
        return [value + extra for value in values] + seen
    return total, add(values), f"{total} # {limit!r:>4}", sorted(seen, key=len)
''',
    "nested": '''
def nested(values, limit=2):
    count = 0
    text = "# no"
    def bump():
        nonlocal count
        count += limit
        return count
    done = [bump() for _ in values]
    # of the last
    first, *rest = done
    while (left := len(rest)) > 1:
        rest.pop()
        limit = limit - left
    return first, rest, limit, text, {k: v for k, v in zip(values, done)}
''',
    "plain": '''
def plain(values, limit=2):
    first = 1
    last = [limit, 2]  # both
    limit = -1
    text, step = "x # y", None
    step = 3
    # a line of its own
    total = first
    first = 7
    while total < 20:
        total += step
        step = 5
        last = limit
    return first, last, limit, step, total, text
''',
    "classes": '''
def classes(values, limit=1):
    size = limit
    scale = 2
    class Box:
        size = 5
        def grow(self, size):
            self.size = self.size * size
            return self.size
    box = Box()
    try:
        size = values[9]
        scale = 7
    except IndexError as error:
        size = len(str(error))
    with open("/dev/null") as stream:
        size += len(stream.read())
    return box.grow(size=scale), size, dict(size=scale, limit=limit)
''',
}  # fmt: skip
CALLS = [([3, 1, 4, 1, 5],), ([2], 0), ([7, 8, 9], 4)]

C = {
    "shadow": """
long shadow(long *values, int num, int limit)
{
    struct pair { long limit, num; } pair = { .limit = 1, .num = 2 };
    long total = 0;  /* so far */
    int index = 0;
    char *text = "/* no */ // no";
    for (int i = 0; i < num; i++) {
        long limit = values[i];
        if (limit > pair.limit++ && index++ < 3) { total += limit * i; } else goto limit;
        continue;
limit:
        total -= pair.limit;  // backwards
    }
    pair.num = total; limit += 1;
    return total + limit + pair.num + text[3] + index;
}
""",
    "switches": """
#define TWICE(x) ((x) * 2)
#define SHOW(limit) (limit + sizeof #limit)
static long switches(long *values, int num, int limit) {
\tlong first = 1, last;
\tint step = 2;
\tlong sum = 0;
\tint (*with)(const void *a, const void *b) = 0;
\tdo {
\t\tswitch (num % 3) {
\t\tcase 0: { int first = TWICE(num); sum += first; } break;
\t\tcase 1: sum ^= SHOW(limit); /* falls */
\t\tdefault:
\t\t\tlast = values[num - 1]; step = step + 1;
\t\t\tsum = sum * 3 + last;
\t\t}
\t} while (--num);
\tfirst = sum; step += 1;
\tlimit = 4; last = 9;
\treturn first - step + (with ? 1 : limit) + last;
}
""",
    "comments": """
long comments(long *values, int num, int limit)
{
    long a/* x */=/* y */1; long b = 2; // both \\
    long a = 7;
#if 1 /* always */
    unsigned char c = 250; int d = limit;
#else
    int c = 0; int d = 1;
#endif /* 1 */
    /* whole
       lines */
    while (d-- > 0) { c += 3; if (c < 10) break; }
    return a - -b + c / 2 + d*/* no pointer */values[0] % num;
}
""",
}
C_MAIN = "long values[] = {5, 3, 8, 1, 9, 2}; "
C_ARGUMENTS = ["values, 6, 2", "values, 2, 7", "values + 3, 3, 0"]

JAVA = {
    "shadow": """
    long shadow(long[] values, int num, int limit) {
        long total = 0; // so far
        String text = "/* no */ // no";
        this.limit = limit; size = num;
        limit:
        for (long limit2 : values) {
            for (int i = 0; i < num; i++) {
                if (limit2 > i && size++ % 2 == 0) continue limit;
                total += limit2 * i + limit();
            }
        }
        java.util.function.LongUnaryOperator add = (x) -> { long y = x; return y + num; };
        return add.applyAsLong(total) + text.length() + this.limit + size;
    }
""",
    "order": """
    public long order(long[] values, int num, int limit)
    {
        int a = 1; int b = 2;
        long c = a + b;
        String s = null; long[] t = values;
        c += limit; a = num;
        b = a; c = c * 3;
        /* whole
           lines */
        try {
            if (num > 2) throw new IllegalStateException("" + c);
            a = 9; b = 8;
        } catch (IllegalStateException | ArithmeticException e) {
            s = e.getMessage(); b += 1;
        } finally { c ^= t[0]; }
        switch (num) { case MAX: int k = 3; c += k; break; default: k = 4; c -= k; }
        return a + 10 * b + 100 * c + (s == null ? 0 : s.hashCode());
    }
""",
}
JAVA_AROUND = """
    int limit = 1; long size = 2; static final int MAX = 2; long limit() { return limit; }
"""
JAVA_ARGUMENTS = ["new long[] {5, 3, 8}, 3, 2", "new long[] {1, 9}, 2, 7"]

JAVASCRIPT = {
    "shadow": """
function shadow(values, {limit, size: most = 3}, extra = limit) {
  var total = 0, x = 1; // so far
  let text = `a ${total + x} // no ${values.map(x => `${x}`)}`;
  const first = 1; const last = "x";
  limit: for (const value of values) {
    for (let i = 0; i < value; i++) { if (i > most) continue limit; total += i; }
  }
  const [head, ...rest] = values, {length} = rest;
  const o = {x, total: total, [last]: first, get y() { return this.x + x; }};
  return [total, text, o, o.y, head, rest, length, extra, typeof values];
}
""",
    "plain": """
const plain = function plain(values, options) {
  "use strict";
  const {limit} = options; // both
  let first = 1; let last = [values.length];
  var step = 'a', total = first;
  for (var k = 0; k < 3; k++) { total += k; step = "b"; last = k; }
  first = 5; total = last;
  return [first, last, step, total, limit, k];
}
""",
    "lines": """
async function lines(values, limit) {
    let a = 1; let b = 2; let c = [a];
    const find = function () { return /* two
      lines */ values; };
    try {
        a = limit; b = null;
    } catch (error) { b = error.message; }
    if (b === null)
    {
        b = find() || 5
    }
    class Box { a = 4; add(a) { return this.a + a; } }
    /* in */ const box = new Box(), r = /\\/\\*x/.test("/*x")
    return [a, b, c, box.add(2), r, find.length]
}
""",
}
JAVASCRIPT_ARGUMENTS = ["[3, 1, 6], {limit: 2}", "[1], {limit: 0, size: 1}, 7"]


def versions(language: str, functions: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Name of a function, name of a transformation ("" for none), text."""
    for function, code in functions.items():
        yield function, "", code
        for name in TRANSFORMATIONS:
            if (new := after(language, code, name)) is not None:
                yield function, name, new


def assert_same(
    language: str, functions: dict[str, str], results: Callable[[list[str]], list[Any]]
) -> None:
    """Compare what each version gives with what the function itself gives."""
    every = list(versions(language, functions))
    names = Counter(name for _, name, _ in every)
    assert all(names[name] for name in TRANSFORMATIONS), names
    given = results([code for *_, code in every])
    first = {
        function: one for (function, name, _), one in zip(every, given, strict=True) if not name
    }
    assert len({json.dumps(one) for one in first.values()}) == len(functions)
    for (function, name, code), one in zip(every, given, strict=True):
        assert one == first[function], f"{name}:\n{code}"


def test_functions_of_python_give_the_same_results():
    def results(codes: list[str]) -> list[Any]:
        given = []
        for code in codes:
            space: dict[str, Any] = {}
            exec(code, space)
            [function] = [value for key, value in space.items() if key != "__builtins__"]
            given.append([repr(function(*map(_copy, call))) for call in CALLS])
        return given

    assert_same("python", PYTHON, results)


def _copy(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


@needs("gcc")
def test_functions_of_c_give_the_same_results_and_the_same_code(tmp_path):
    def results(codes: list[str]) -> list[Any]:
        texts = ["#include <stdio.h>\n"]
        calls = []
        for number, code in enumerate(codes):
            [name] = re.findall(r"long (\w+)\(long \*values", code) or re.findall(
                r"long (\w+)\(long \*\w+, int \w+, int \w+\)", code
            )
            texts.append(re.sub(r"#define (\w+)", r"#undef \1\n#define \1",
                                code.replace(f" {name}(", f" f{number}(", 1)))  # fmt: skip
            calls += [f'printf("{number} %ld\\n", f{number}({a}));' for a in C_ARGUMENTS]
        texts.append(f"int main(void) {{ {C_MAIN} {' '.join(calls)} return 0; }}\n")
        (tmp_path / "all.c").write_text("".join(texts))
        run(["gcc", "-std=gnu11", "-w", "all.c", "-o", "all"], tmp_path)
        lines = run([str(tmp_path / "all")], tmp_path).stdout.split("\n")[:-1]
        return [[line.split()[1] for line in lines if line.split()[0] == str(n)]
                for n in range(len(codes))]  # fmt: skip

    assert_same("c", C, results)
    for function, code in C.items():
        assembly = []
        for name in ("", *SAME_CODE):
            text = code if not name else after("c", code, name) or code
            (tmp_path / "one.c").write_text(text)
            run(["gcc", "-std=gnu11", "-w", "-S", "-O1", "one.c", "-o", "one.s"], tmp_path)
            assembly.append((tmp_path / "one.s").read_text())
        assert len(set(assembly)) == 1, function


@needs("javac", "java")
def test_methods_of_java_give_the_same_results_and_the_same_code(tmp_path):
    def results(codes: list[str]) -> list[Any]:
        texts, calls = [], []
        for number, code in enumerate(codes):
            name = re.search(r"long (\w+)\(long", code)[1]
            texts.append(f"class X{number:02d} {{ {JAVA_AROUND} {code} }}\n")
            calls += [f'System.out.println("{number} " + new X{number:02d}().{name}({a}));'
                      for a in JAVA_ARGUMENTS]  # fmt: skip
        main = f"public static void main(String[] a) {{ {' '.join(calls)} }}"
        (tmp_path / "All.java").write_text(f"{''.join(texts)} class All {{ {main} }}")
        run([*JAVAC, "-g:none", "All.java"], tmp_path)
        lines = run(
            ["java", "-XX:TieredStopAtLevel=1", "-cp", ".", "All"], tmp_path
        ).stdout.splitlines()
        return [[line.split()[1] for line in lines if line.split()[0] == str(n)]
                for n in range(len(codes))]  # fmt: skip

    assert_same("java", JAVA, results)
    first: dict[str, bytes] = {}
    for number, (function, name, _) in enumerate(versions("java", JAVA)):
        one = (tmp_path / f"X{number:02d}.class").read_bytes().replace(b"X%02d" % number, b"X00")
        assert name not in ("", *SAME_CODE) or first.setdefault(function, one) == one, name


@needs("node")
def test_functions_of_javascript_give_the_same_results(tmp_path):
    def results(codes: list[str]) -> list[Any]:
        calls = []
        for code in codes:
            name = re.search(r"function (\w+)\(", code)[1]
            given = ", ".join(f"{name}({a})" for a in JAVASCRIPT_ARGUMENTS)
            calls.append(f"(() => {{ {code}\n return [{given}]; }})()")
        text = (
            f"Promise.all([{', '.join(calls)}].map(one => Promise.all(one)))"
            ".then(all => console.log(JSON.stringify(all)));"
        )
        (tmp_path / "all.js").write_text(text)
        return list(json.loads(run(["node", "all.js"], tmp_path).stdout))

    assert_same("javascript", JAVASCRIPT, results)


# -- functions from elsewhere ------------------------------------------------------------------


def humaneval(language: str) -> list[dict[str, str]]:
    path = SHARED / "humanevalpack" / f"humanevalpack_{language}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


@pytest.mark.skipif(not (SHARED / "humanevalpack").exists(), reason="no HumanEvalPack beside it")
@pytest.mark.parametrize("language", ["python", "javascript", "java", "cpp"])
def test_functions_of_humanevalpack_parse_again_and_those_of_python_pass_their_tests(
    language, tmp_path
):
    rows = humaneval({"javascript": "js"}.get(language, language))
    num: Counter[str] = Counter()
    texts = []
    for row in rows[::4]:
        code = row["declaration"] + row["canonical_solution"]
        if parsed(code, language) is None:
            continue
        for name in TRANSFORMATIONS:
            new = after(language, code, name)
            if new is not None:
                num[name] += 1
                assert parsed(new, language) is not None
                texts.append(f"{new}\n{row['test']}\n")
    assert min(num[name] for name in ("names", "layout", "dead code")) > 38
    if language == "python":
        text = "".join(f"exec({text!r}, {{}})\n" for text in texts)
        (tmp_path / "all.py").write_text(text)
        run([sys.executable, "all.py"], tmp_path)


@pytest.mark.skipif(not (SHARED / "devign_test_complete").exists(), reason="no Devign beside it")
def test_functions_of_devign_parse_again_and_keep_their_words():
    with gzip.open(
        SHARED / "devign_test_complete" / "devign_test_complete.jsonl.gz", "rt"
    ) as lines:
        codes = [json.loads(line)["func"] for line in lines][::16]
    num: Counter[str] = Counter()
    for code in codes:
        for name in TRANSFORMATIONS:
            if parsed(code, "c") is None or (new := after("c", code, name)) is None:
                continue
            num[name] += 1
            assert parsed(new, "c") is not None
            if name == "names":
                new_names(code, new)
            elif name in SAME_CODE:
                assert words(code) == words(new)
    assert num["names"] > 75
    assert num["order"] > 10
