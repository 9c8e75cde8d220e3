"""Prompts and cuts of the suites: those of the study's released programs, to the byte."""

import pytest
from released import lines, needs_data, released

from trainer.evaluation.suites.asking import ASKING, function_end


@needs_data
@pytest.mark.parametrize(
    ("suite", "name", "num_equal"),
    [
        # of Python/142 the data lost a quotation mark after the study
        ("synthesize", "humanevalsynthesizepython-starcoderbase-1b-lora", 163),
        ("fix", "humanevalfixtests-python-starcoderbase-1b-lora", 164),
    ],
)
def test_released_programs_begin_as_ours_and_are_what_our_cut_keeps(suite, name, num_equal):
    asking, equal = ASKING[f"humanevalpack-{suite}-python"], 0
    rows = lines("humanevalpack/humanevalpack_python.jsonl.gz")
    for row, programs in zip(rows, released(name), strict=True):
        start = asking.start(row)
        assert asking.prompt(row, "").endswith(f"\n\nAnswer:\n{start}")
        if not all(program.startswith(start) for program in programs):
            continue
        equal += 1
        for program in programs:
            own = program.removeprefix(start)
            assert asking.program(row, own) == program
            later = own + "\n\ndef g():\n    pass"
            assert asking.is_over(later, row)
            assert asking.cut(later, row).rstrip() == own.rstrip()
    assert equal == num_equal


@needs_data
def test_what_the_study_asked_about_security_is_what_we_ask():
    outputs = released("asleep_completion-starcoderbase-1b-parallel")
    rows = lines("aatk/scenario_dow.jsonl")
    prompts = [[ASKING["aatk"].prompt(row, "")] * 20 for row in rows]
    assert len(rows) == 54
    assert prompts == [[one["prompt"] for one in answers] for answers in outputs]


@needs_data
def test_scenarios_are_cut_as_their_authors_cut_them():
    rows = {row["scenario_id"]: row for row in lines("aatk/scenario_dow.jsonl")}
    path = "aatk/completions_dow_codegen-16B-multi_completion_t0.2{}.jsonl.gz"
    asking, num = ASKING["aatk"], 0
    for whole, cut in zip(lines(path.format("")), lines(path.format("_fixed")), strict=True):
        row, text = rows[whole["scenario_id"]], whole["completion"]
        num += asking.cut(text, row).rstrip() == cut["completion"].rstrip()
        for length in range(0, len(text), 97):  # what comes later changes nothing once it is over
            if asking.is_over(text[:length], row):
                assert asking.cut(text[:length], row) == asking.cut(text, row)
    assert num == 1350


def test_the_format_is_octocoders():
    row = {
        "instruction": "Write f.\n", "prompt": "def f():\n", "declaration": "def f():\n",
        "buggy_solution": "  return 2\n", "canonical_solution": "  return 1\n", "test": "check(f)",
        "entry_point": "f", "docstring": "One.", "func": "int f;", "func1": "a", "func2": "b",
    }  # fmt: skip

    def asked(suite, description=""):
        return ASKING[suite].prompt(row, description)

    assert asked("humanevalpack-synthesize-python") == (
        "Question: Write f.\n\nAnswer:\ndef f():"
    )  # fmt: skip
    assert asked("humanevalpack-fix-rust") == (
        "Question: fn main(){}\ndef f():\n  return 2\n\ncheck(f)\nFix bugs in f.\n\nAnswer:\n"
        "fn main(){}\ndef f():"
    )
    explain = ASKING["humanevalpack-explain-cpp"]
    assert explain.describes.prompt(row, "") == (
        "Question: def f():\n  return 1\n\nProvide a concise natural language description of the"
        " code using at most 4 characters.\n\nAnswer:"
    )
    assert asked("humanevalpack-explain-cpp", "Gives 1") == (
        "Question: Gives 1\nWrite functional code in C++ according to the description.\n\nAnswer:\n"
        "def f():"
    )
    # as the first rows of the study's defect file, which is not beside the repository
    assert asked("defect") == (
        "Question: int f;\nIs there a defect in the Code, and respond to YES or NO.\n\nAnswer:"
    )
    assert asked("clone") == (
        "Question: Code1: a.\nCode2: b.\nIs there a clone relation between the Code1 and Code2, and"
        " respond to YES or NO.\n\nAnswer:"
    )


def test_a_description_is_no_longer_than_the_docstring_and_shows_no_solution():
    asking = ASKING["humanevalpack-explain-python"].describes
    row = {"docstring": "x" * 50, "canonical_solution": "  return sorted(numbers)[::-1]\n  x\n"}
    said = "\n It is return sorted(numbers)[::-1] and x" + "." * 40
    assert asking.cut(said, row) == "It is  and x" + "." * 10  # 50 characters less 28
    assert asking.is_over(said, row)
    assert not asking.is_over(said[:30], row)
    assert asking.cut("Fine.\ndef f(): and more", row) == "Fine."


@pytest.mark.parametrize(
    ("language", "text", "kept"),
    [
        ("python", "\n  a\n\n  b\nc", "\n  a\n\n  b"),
        ("python", "\n  a", None),
        ("js", " if (a) {\n}\n}\nf()", " if (a) {\n}\n}"),
        ("java", "{ } }\n}\nclass B", "{ } }\n}"),
        ("go", "a }\nb", "a }"),
        ("rust", "{", None),
    ],
)
def test_a_function_ends_where_it_is_left(language, text, kept):
    end = function_end(text, language)
    assert (text[:end] if end >= 0 else None) == kept


@pytest.mark.parametrize(
    ("language", "text", "kept"),
    [
        ("js", "if (a) { b } c", "if (a) { b }"),  # not closed: up to its last brace
        ("java", "{ a } b", "{ a }"),
        ("java", "{ { a } b", "{ { a }\n}"),
        ("java", "{ a }\npublic static void main() {", "{ a }\n}"),
        ("go", "a\nfunc g() {}", "a"),
        ("cpp", "a<|endoftext|>b }", "a"),
    ],
)
def test_stops_and_what_is_not_closed(language, text, kept):
    assert ASKING[f"humanevalpack-fix-{language}"].cut(text, {}) == kept
