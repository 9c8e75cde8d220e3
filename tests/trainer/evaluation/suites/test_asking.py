"""Prompts and cuts of the suites: those of the study's released programs, to the byte."""

import gzip
import json

import pytest
from released import DATA, lines, needs_data, released

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
    """As bigcode-evaluation-harness writes it: humanevalpack.py with --prompt octocoder, where the
    instruction comes before the code, and instruct_codexglue_*_detection.py.
    """
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
        "Question: Fix bugs in f.\nfn main(){}\ndef f():\n  return 2\n\ncheck(f)\n\nAnswer:\n"
        "fn main(){}\ndef f():"
    )
    explain = ASKING["humanevalpack-explain-cpp"]
    assert explain.describes.prompt(row, "") == (
        "Question: Provide a concise natural language description of the code using at most 4"
        " characters.\ndef f():\n  return 1\n\n\nAnswer:"
    )
    assert asked("humanevalpack-explain-cpp", "Gives 1") == (
        "Question: Write functional code in C++ according to the description.\nGives 1\n\nAnswer:\n"
        "def f():"
    )
    # also as the first rows of the study's defect file, which is not beside the repository
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
    row = {
        "docstring": "x" * 50,
        "canonical_solution": "12345678901234567890\n123456789012345678901",
    }
    assert asking.cut("12345678901234567890 123456789012345678901", row) == "12345678901234567890 "


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
    assert ASKING[f"humanevalpack-fix-{language}"].is_over(text, {}) is (kept is not None)


@pytest.mark.parametrize(
    ("language", "text", "kept"),
    [
        ("js", "if (a) { b } c", "if (a) { b }"),  # not closed: up to its last brace
        ("java", "{ a } b", "{ a }"),
        ("java", "{ { a } b", "{ { a }\n}"),
        ("java", "{ a }\npublic static void main() {", "{ a }\n}"),
        ("go", "a\nfunc g() {}", "a"),
        ("python", "\ndef g():", ""),
        ("python", "c\n", ""),
        ("cpp", "a<|endoftext|>b }", "a"),
    ],
)
def test_stops_and_what_is_not_closed(language, text, kept):
    assert ASKING[f"humanevalpack-fix-{language}"].cut(text, {}) == kept


@pytest.mark.parametrize(
    ("suites", "settings"),
    [
        ("defect clone", (512, 1, 0.0)),
        ("recode", (1024, 1, 0.0)),
        ("humaneval aatk", (1024, 20, 0.2)),
        ("humanevalpack-synthesize-go humanevalpack-fix-java", (2048, 20, 0.2)),
    ],
)
def test_the_settings_are_the_studys(suites, settings):
    """Of its scripts: --max_length_generation, --n_samples, --temperature; top_p is the default."""
    for suite in suites.split():
        one = ASKING[suite]
        assert (one.most_tokens, one.num_samples, one.temperature) == settings
        assert one.top_p == 0.95


@pytest.mark.parametrize("suite", sorted(ASKING))
def test_a_stop_string_makes_an_answer_over_whatever_comes_behind_it(suite):
    """vLLM ends an answer there, our own writer up to seven tokens later."""
    row = {
        "language": "python", "prompt": "def f():\n", "declaration": "def f():\n",
        "docstring": "x" * 40, "canonical_solution": "",
    }  # fmt: skip
    for asking in filter(None, (ASKING[suite], ASKING[suite].describes)):
        assert "<|endoftext|>" in asking.stops(row)
        for stop in asking.stops(row):
            text = f"  a {stop}"
            assert asking.is_over(text, row)
            assert asking.cut(f"{text} yes }} no\n", row) == asking.cut(text, row)


@needs_data
def test_the_studys_answers_in_words_end_with_their_first_line():
    path = DATA / "astraios_outputs/defect_detection_answers.json.gz"
    models = json.loads(gzip.decompress(path.read_bytes()))["answers"]
    behind = [text.partition("\n") for answers in models.values() for text in answers]
    assert sum(bool(newline) for _, newline, _ in behind) > 10_000
    assert not any(text.strip() for *_, text in behind)


def test_of_an_answer_in_words_one_line_is_kept():
    assert ASKING["defect"].cut("Yes\nNo", {}) == "Yes"
    assert ASKING["clone"].cut("\nYes", {}) == ""


def test_a_program_is_the_prompts_end_and_what_is_kept():
    row = {"prompt": "\ndef f():\n"}
    asking = ASKING["recode"]
    assert asking.program(row, "\n  return 1\n\ndef g") == "def f():\n  return 1\n"
    assert asking.program(row, "\ndef g") == "def f():"
    assert [asking.is_over(text, row) for text in ("\ndef g", "\n  return 1")] == [True, False]
    assert ASKING["humanevalpack-fix-python"].is_over("c", row)


@pytest.mark.parametrize(
    ("language", "prompt", "text", "kept"),
    [
        ("c", "int f() {\n", " a; {b;}\n}\nint g() {}", " a; {b;}"),
        ("c", "int f() {\n", "}", ""),
        ("c", "int f() {\n", " a;", " a;"),
        ("python", "def f():\n", "    a\n\n    b\nc\n", "    a\n\n    b"),
        ("python", "@app\n", "def f():\n    a\nb", "def f():\n    a"),  # begins outside
        ("python", "e =", "  A()\ne.b = 1\n\n# c", "  A()\ne.b = 1\n"),  # the rest of a line
        ("python", "e =\n", "  A()\ne.b = 1", "  A()"),
        ("python", "e =", "  A(\n  1)\ne.b = 1", "  A(\n  1)"),
        ("python", "", "a\n# b", "a"),
    ],
)
def test_a_scenario_ends_with_its_function(language, prompt, text, kept):
    row = {"language": language, "prompt": prompt}
    assert ASKING["aatk"].cut(text, row) == kept
    assert ASKING["aatk"].is_over(text, row) is (text != kept)
    assert ASKING["aatk"].program(row, text) == kept
