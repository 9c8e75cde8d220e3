"""Transformations of functions, written by hand for each language and trap."""

import re
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import pytest

from data.records import CodeSample
from trainer.evaluation.robustness.languages import LANGUAGES, languages_of, parsed
from trainer.evaluation.robustness.transformations import transformed

NAME = r"[A-Za-z_$][\w$]*"


def changed(language: str, code: str, name: str) -> str | None:
    found = parsed(code, language)
    assert found is not None, code
    return transformed(found, name)


# A name after @ is one of the function's own: any new one will do, the same at each of its places.
BY_HAND = {
    case: (before, after)
    for case, before, after in re.findall(
        r"^=== ([\w ]+).*\n((?s:.*?))\n--- (?:becomes\n((?s:.*?))|stays as it is)\n(?====|\Z)",
        Path(__file__).with_name("transformations.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
}


def matches(text: str, expected: str) -> bool:
    """Whether a text is the expected one with new names, one for each @name."""
    own: dict[str, str] = {}
    pattern = ""
    for place, part in enumerate(re.split(rf"@({NAME})", expected)):
        if place % 2 == 0:
            pattern += re.escape(part)
        elif part in own:
            pattern += rf"(?P={own[part]})"
        else:
            own[part] = f"n{len(own)}"
            pattern += rf"(?P<{own[part]}>{NAME})"
    found = re.fullmatch(pattern, text)
    if found is None:
        return False
    new = set(found.groups())
    return len(new) == len(own) and not new & set(re.findall(NAME, expected.replace("@", "")))


def test_the_cases_by_hand_are_of_every_language_and_transformation():
    assert len(BY_HAND) == 23
    cases = {tuple(case.split()[:2]) for case in BY_HAND}
    for language in LANGUAGES:
        assert {(language, "names"), (language, "order")} <= cases
        assert language == "cpp" or {(language, "comments"), (language, "layout")} <= cases


@pytest.mark.parametrize("case", BY_HAND)
def test_a_transformation_gives_what_was_written_by_hand(case):
    language, name, *_ = case.split()
    before, after = BY_HAND[case]
    found = changed(language, before, name)
    if not after:
        assert found is None
    else:
        assert found is not None
        assert matches(found, after), found


DEAD = {
    "c": "int f(void)\n{\n    int a = 1;\n    return a;\n}",
    "cpp": "int f()\n{\n    if (b) goto out;\nout:\n    return a;\n}",
    "java": "X(int a)\n{\n    super(a);\n    this.a = a;\n}",
    "javascript": "function f(a) {\n    'use strict';\n    return a\n}",
    "python": 'def f(a):\n    """Doc."""\n    # why\n    return a',
}
FIRST_LINE = {"c": (2, 3), "cpp": (2,), "java": (3,), "javascript": (2,), "python": (3,)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_dead_code_is_a_variable_and_a_branch_that_nothing_depends_on(language):
    """Places: after super(), a directive and a docstring; where no goto jumps over it."""
    code, kind = DEAD[language], {"javascript": "let ", "python": ""}.get(language, "int ")
    found = parsed(code, language)
    texts = {transformed(found, "dead code", seed) for seed in range(20)}
    places = set()
    for text in texts:
        lines = text.splitlines()
        [first] = [n for n, line in enumerate(lines) if re.match(rf"    {kind}\w+ = \d+;?$", line)
                   and line.split()[-3] not in re.findall(NAME, code)]  # fmt: skip
        name = lines[first].split()[-3]
        body = (f"    if {name} < 0:", f"        {name} += 1") if language == "python" else (
            f"    if ({name} < 0) {{", f"        {name} += 1;", "    }")  # fmt: skip
        assert tuple(lines[first + 1 : first + 1 + len(body)]) == body
        del lines[first : first + 1 + len(body)]
        assert lines == code.splitlines()
        places.add(first)
    assert places == set(FIRST_LINE[language])


def test_a_body_on_one_line_gets_dead_code_beside_it_but_not_in_python():
    assert changed("python", "def f(a): return a", "dead code") is None
    tabs = changed("java", "\tint f() {\n\t\treturn 1;\n\t}", "dead code")
    assert re.search(r"\n\t\tif .* \{\n\t\t\t\w+ \+= 1;\n\t\t\}\n", tabs)
    text = changed("c", "int f(int a) { return a; }", "dead code")
    assert re.fullmatch(
        r"int f\(int a\) \{ int (\w+) = \d+; if \(\1 < 0\) \{ \1 \+= 1; \} return a; \}", text
    )


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "def f(a):\n    b = 1\n    return eval(g)"),
        ("javascript", "function f(a) {\n  let b = 1;\n  return eval(g);\n}"),
    ],
)
def test_no_name_changes_or_is_added_where_code_may_read_any_variable(language, code):
    assert changed(language, code, "names") is None
    assert changed(language, code, "dead code") is None
    other = code.replace("eval", "read")
    assert changed(language, other, "names") is not None
    assert changed(language, other, "dead code") is not None


def test_the_same_text_and_seed_give_the_same_function_and_another_seed_others():
    code = parsed(BY_HAND["java names"][0], "java")
    texts = [transformed(code, "names", seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    # Anywhere, always: the draw depends on nothing but these.
    assert texts[0].splitlines()[0] == "int f(int pearl, List<String> list)"


def sample(code="int f(int a) { return a; }", language="", origin="data.jsonl:3", code2=""):
    return CodeSample("1", code, 1, origin, language=language, code2=code2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"language": "C++"}, "cpp"),
        ({"language": "c"}, "c"),
        ({"language": "JS", "code": "f(a) { return a === 1 }"}, "javascript"),
        ({"language": "python3", "code": "def f(a):\n  return a"}, "python"),
        ({"language": "c", "code": "int f() { return new A(); }"}, "cpp"),
        ({"language": "Java", "origin": "a.c:1"}, "java"),
        ({"language": "Go"}, ""),
        ({"origin": "data.zip::src/a.cc:7"}, "cpp"),
        ({"origin": "src/a.java", "code": "def f(a):\n  return a"}, ""),
        ({"code": "def f(a):\n  return a"}, "python"),
        ({"code": "function f(a) { return a === 1 }"}, "javascript"),
        ({"code": "public int f(int a) { return a; }"}, "java"),
        ({"code": "X(int a) { super(a); this.a = a; }"}, "java"),
        ({"code": "int f(char *a) { return *a; }"}, "c"),
        ({"code": "int f(char &a) { return a; }"}, "cpp"),
        ({"code": "int f(char *a) { return *a; "}, ""),
        ({"code": "int a = 1;"}, ""),
        ({"code": "def f(a):\n  return a", "code2": "def g(:"}, ""),
        ({"code": "int f(char *a) { return '\ud800'; }"}, ""),
    ],
)
def test_a_function_is_in_the_language_that_its_row_its_file_or_a_grammar_names(given, expected):
    assert languages_of([sample(**given)]) == [expected]


def test_a_function_of_several_languages_is_in_that_of_most_others():
    both = sample("int f(int a) { return a; }")
    assert languages_of([both]) == ["java"]
    pointer = sample("int f(char *a) { return *a; }")
    assert languages_of([both, pointer, pointer]) == ["c", "c", "c"]


def test_a_text_that_is_long_deep_or_of_many_meanings_is_left_out_and_does_no_harm():
    for text in (f"return {'!' * 9_000}a;", f"return {' + '.join(2_000 * 'a')};", "a;" * 30_000):
        assert parsed(f"int f(int a) {{ {text} }}", "c") is None
    deep = parsed(f"int f(int a) {{ return {' + '.join(400 * 'a')}; }}", "c")
    assert deep is not None
    assert transformed(deep, "names") is not None
    before = getrusage(RUSAGE_SELF).ru_maxrss
    assert parsed(f"int f(int a) {{ {'a<' * 8_000} }}", "java") is None  # it would take 600 MiB
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert parsed("a b c d e f ) " * 100, "cpp") is None
    assert parsed("int f(int a) { return a; }", "cpp") is not None  # the next one begins anew
