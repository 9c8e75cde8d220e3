"""Which functions lose their meaning when all whitespace is collapsed."""

import time

import pytest
from conftest import REPOSITORY, sample_rows

from data.config import DataConfig
from data.readers import read_records
from data.records import CodeSample
from data.text.scanner import divided, family, without_comments
from data.text.whitespace import collapse_damage, collapse_harms

ARCHIVE = REPOSITORY.parent.joinpath(
    "shared", "data", "vul_java_x1_without_p3", "java_k_1_strict_2023_07_03.tar.gz"
)

UNHARMED = {
    "no comment": "int f(int a) {\n  return a;\n}",
    "url in a string": 'String s() {\n  return "http://x.org";\n}',
    "url in a char-quoted string": "function f() {\n  get('http://x.org');\n}",
    "escaped quote before slashes": 'f() {\n  g("\\" // no");\n}',
    "escaped backslash ends the string": 'f() {\n  g("\\\\");\n  h("//");\n}',
    "a quote as a character": 'f() {\n  g(\'"\');\n  h("//");\n}',
    "block comment": "f() {\n  /* // \n */ g();\n}",
    "block comment with a quote": 'f() {\n  /* " */ g("//");\n}',
    "last thing is a line comment": "f() {\n  g();\n} // done",
    "only comments follow": "f() { g(); }\n// one\n// two\n/* three */\n",
    "one line": "f() { g(); } // done",
    "text block": 'String s = """\n  // not here\n  """;\n',
    "raw string": 'auto s = R"x(\n // " )" )x";\nint b;',
    "template of JavaScript": "const s = `\n // ${a}\n`;\nf();",
    "regular expression of JavaScript": "f() {\n  s.split(/\\/\\//);\n  g();\n}",
    "lifetimes of Rust": "fn f<'a>(x: &'a str) -> &'a str {\n  g(\"//\");\n x\n}",
    "digit separators": "long f() {\n  return 1'000 + g(\"//'\");\n}",
    "word with slashes that divide": "f() {\n  return a / b / c;\n}",
    "hash inside a word of a shell": "f() {\n  if true; then echo $# ${x#y}\n  fi\n}",
    "one-line Python": "def f(x): return x",
}
BOTH = ["line_comment", "indentation"]
ARGUMENTS = "def f(\n    x,\n    y={},\n) -> int:\n    return x"
DOCSTRING = 'async def f(x):\n    """a # b\n    c"""\n    return x\n'
HARMED = {
    "comment, then code": ("int f() {\n  a(); // why\n  b();\n}", ["line_comment"]),
    "comment, then a brace only": ("int f() {\n  // why\n}", ["line_comment"]),
    "comment after a string with slashes": ('f() {\n g("//"); // x\n h();\n}', ["line_comment"]),
    "apostrophe in the comment": ("f() {\n  // don't\n  g('x');\n}", ["line_comment"]),
    "comment after a block comment": ("f() { /* \" */ // x\n g();\n}", ["line_comment"]),
    "division, then a comment": ("f() {\n  x = a / b; // c\n  g();\n}", ["line_comment"]),
    "only a string follows": ('f( // x\n"y"', ["line_comment"]),
    "CRLF": ("f() {\r\n  a(); // x\r\n  b();\r\n}", ["line_comment"]),
    "lone CR": ("f() {\r  a(); // x\r  b();\r}", ["line_comment"]),
    "Python": ("def f(x):\n    return x\n", ["indentation"]),
    "Python class": ("class A(B):\n\n    x = 1\n", ["indentation"]),
    "Python, arguments on lines": (ARGUMENTS, ["indentation"]),
    "Python with a comment": ("def f(x):\n    # why\n    return x\n", BOTH),
    "Python, hash in a string": ("def f(x):\n    return '#' + x\n", ["indentation"]),
    "Python, docstring": (DOCSTRING, ["indentation"]),
    "shell": ("f() {\n  if a; then # x\n    b\n  fi\n}", ["line_comment"]),
    "PHP": ("function f($a) {\n  # x\n  return 'a';\n}", ["line_comment"]),
    "include": ("#include <x.h>\nint f() { return 1; }", ["preprocessor"]),
    "ifdef inside": ("int f() {\n#ifdef A\n  a();\n#endif\n}", ["preprocessor"]),
    "directive and comment": ("#define A 1 // x\nint f();", ["line_comment", "preprocessor"]),
    "directive after a block comment": ("/* a\n*/ # if X\nint f();", ["preprocessor"]),
}  # fmt: skip


@pytest.mark.parametrize("code", UNHARMED.values(), ids=UNHARMED)
def test_collapse_leaves_the_meaning_of(code):
    assert collapse_harms(code) == []


@pytest.mark.parametrize(("code", "harms"), HARMED.values(), ids=HARMED)
def test_collapse_changes_the_meaning_of(code, harms):
    assert collapse_harms(code) == harms


def test_a_directive_in_a_comment_or_a_string_is_none():
    assert collapse_harms("/*\n#include <a>\n*/\nint f() {\n  return 1;\n}") == []
    assert collapse_harms("const s = `\n#define A\n`;\nf();") == []
    assert collapse_harms("#define A 1\n") == []  # alone it loses nothing


def test_comments_and_strings_are_told_apart_from_code():
    code = 'f("http://a", /* b */ c); // d "e"\n'
    rest, comments, strings = divided(code)
    assert comments.split("\n") == ["/* b */", '// d "e"']
    assert strings == '"http://a"'
    assert rest.split() == ["f(", ",", "c);"]
    assert without_comments(code).split() == ['f("http://a",', "c);"]


def test_counts_are_per_kind_with_places():
    codes = ["f() {\n // x\n}", "def f():\n    # y\n    pass\n", "f();", "#if A\nf();\n#endif"]
    samples = [CodeSample(str(i), code, 0, f"a:{i}") for i, code in enumerate(codes, start=1)]
    facts = collapse_damage(samples)
    assert (facts.num_functions, facts.num_examined, facts.num_harmed) == (4, 4, 3)
    assert (facts.num_line_comment, facts.num_indentation, facts.num_preprocessor) == (2, 1, 1)
    assert facts.examples == {
        "line_comment": ["a:1", "a:2"], "indentation": ["a:2"], "preprocessor": ["a:4"]
    }  # fmt: skip
    assert "3 of 4 functions" in facts.warning()
    assert collapse_damage(samples[2:3]).warning() == ""


def test_above_the_limit_evenly_spaced_functions_are_looked_at():
    samples = [
        CodeSample(str(i), "f() {\n // x\n}" if i % 2 else "f();", 0, f"a:{i}") for i in range(1001)
    ]
    facts = collapse_damage(samples, limit=101)
    assert (facts.num_functions, facts.num_examined) == (1001, 101)
    assert 0 <= facts.num_harmed <= 101


def test_the_language_of_every_embedded_function_is_known_and_comments_are_found():
    rows = sample_rows("train", 10_000, longest=10**9)
    for row in rows:
        assert (family(str(row["code"])) == "python") == (row["language"] == "python")
    assert len(rows) > 4000
    samples = [CodeSample("", str(row["code"]), 0, "") for row in rows]
    facts = collapse_damage(samples)
    # The generator writes # only as a comment and // only as one, always before more code.
    expected = sum("//" in s.code or "    # " in s.code for s in samples)
    assert facts.num_line_comment == expected > 1000
    assert facts.num_indentation == sum(row["language"] == "python" for row in rows)


@pytest.mark.parametrize("unit", ['"\\', '"""\\', "`\\", "=/[", 'R"(x ', "def f(\n", "/* ", "'"])
def test_hostile_text_takes_time_in_proportion(unit):
    code = unit * (80_000 // len(unit)) + "\nx"
    begin = time.process_time()
    collapse_harms(code)
    divided(code)
    # At most 0.4 s here; the patterns that backtracked took 20 s and more.
    assert time.process_time() - begin < 4


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="needs the real archive beside the repository")
def test_most_but_not_all_slashes_of_the_real_functions_are_comments_that_swallow():
    config = DataConfig(path=str(ARCHIVE))
    samples = [
        s for name in ("train", "valid", "test") for s in read_records(ARCHIVE, name, config)
    ]
    with_slashes = [s for s in samples if "//" in s.code]
    assert (len(samples), len(with_slashes)) == (1334, 753)
    harmed = [s for s in samples if "line_comment" in collapse_harms(s.code)]
    assert len(harmed) == 731
    assert harmed == [s for s in samples if swallows_by_hand(s.code)]


def swallows_by_hand(code: str) -> bool:
    """A line comment of Java with code after it, found a character at a time."""
    state, comment_seen, at = "code", False, 0
    while at < len(code):
        two = code[at : at + 2]
        if state == "code":
            if two in ("//", "/*"):
                state, at = two, at + 2
                comment_seen |= two == "//"
                continue
            if code[at] in "\"'":
                state = code[at]
            if comment_seen and not code[at].isspace():
                return True
        elif state in "\"'":
            if code[at] == "\\":
                at += 1
            elif code[at] == state:
                state = "code"
        elif (state == "//" and code[at] == "\n") or (state == "/*" and two == "*/"):
            at += state == "/*"
            state = "code"
        at += 1
    return False
