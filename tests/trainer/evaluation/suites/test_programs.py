"""Programs of six languages: canonical solutions pass, wrong and dishonest ones do not."""

import gzip
import json

import pytest
from conftest import REPOSITORY
from sandboxed import needs_sandbox

from launcher.suite import main as suite
from trainer.evaluation.suites import sandbox
from trainer.evaluation.suites.items import first_shape, shape_of
from trainer.evaluation.suites.programs import LANGUAGES
from trainer.evaluation.suites.suite import Item
from trainer.evaluation.suites.suites import SUITES

DATA = REPOSITORY.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the repository")


def rows(language):
    with gzip.open(DATA / "humanevalpack" / f"humanevalpack_{language}.jsonl.gz", "rt") as stream:
        return [json.loads(line) for line in stream]


def verdicts(language, row, *outputs):
    found = LANGUAGES[language].judge(Item(row["task_id"], row, 0), outputs)
    return [one.verdict for one in found]


def compiled(language):
    missing = [name for name in LANGUAGES[language].needs if not sandbox.seen(name)]
    if missing:
        pytest.skip(f"{missing[0]} is not in /usr/bin")


@needs_sandbox
@needs_data
@pytest.mark.parametrize(
    ("language", "place"),
    # Python's tests of 32 use a function beside the entry point, Go's 162 a package of its own.
    [*((language, 0) for language in LANGUAGES), ("python", 32), ("go", 162)],
)
def test_canonical_solutions_pass_and_buggy_ones_fail(language, place):
    compiled(language)
    row = rows(language)[place]
    right, wrong = (row["prompt"] + row[key] for key in ("canonical_solution", "buggy_solution"))
    assert verdicts(language, row, right, wrong, right) == ["pass", "fail", "pass"]


@needs_sandbox
@needs_data
@pytest.mark.parametrize(
    ("language", "extra"),
    [
        ("js", "process.exit(0);"),
        ("js", "console.log('PASS'); process.reallyExit(0);"),
        ("js", "console.assert = () => {};"),
        ("js", "Object.defineProperty(console, 'assert', {value: () => {}});"),
        ("js", "globalThis.console = {assert: () => {}};"),
        ("js", "const console = {assert: () => {}};"),
        ("js", "process.reallyExit = () => {}; process.on('uncaughtException', () => {});"),
        ("js", "process.on('exit', () => { process.exitCode = 0; });"),
        ("cpp", "struct Early { Early() { puts(\"PASS\"); exit(0); } } early;"),
        ("cpp", "#define NDEBUG"),
    ],
)  # fmt: skip
def test_130_a_wrong_solution_that_is_dishonest_still_fails(language, extra):
    compiled(language)
    row = rows(language)[0]
    wrong = row["prompt"] + row["buggy_solution"]
    assert verdicts(language, row, f"{wrong}\n{extra}\n") == ["fail"]


EXITS = {  # in place of a solution: a line that looks like success, and an end in good order
    "js": "console.log('PASS'); process.exit(0) }\n",
    "java": 'System.out.println("PASS"); System.exit(0); return true; } }\n',
    "go": 'println("PASS"); os.Exit(0); return true }\n',
    "rust": 'println!("test result: ok. 1 passed"); std::process::exit(0) }\n',
    "cpp": 'puts("PASS"); exit(0); }\n',
}


@needs_sandbox
@needs_data
@pytest.mark.parametrize("language", EXITS)
def test_129_a_solution_that_ends_its_process_fails(language):
    compiled(language)
    row = rows(language)[0]
    prompt = row["prompt"].replace('"math"', '"math"\n"os"')
    [found] = LANGUAGES[language].judge(Item("0", row, 0), [prompt + EXITS[language]])
    assert found.verdict == "fail"
    assert "does not build" not in found.detail
    assert "PASS" in found.detail or language in ("go", "rust"), found.detail


@needs_sandbox
@needs_data
def test_every_canonical_solution_of_python_passes(tmp_path):
    outputs = [[row["prompt"] + row["canonical_solution"]] for row in rows("python")]
    (tmp_path / "o.json").write_text(json.dumps(outputs))
    words = ["--data", f"{DATA}", "--generations", f"{tmp_path / 'o.json'}"]
    assert suite(["humanevalpack-fix-python", *words, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "humanevalpack-fix-python" / "suite.json").read_text())
    assert found["counts"] == {"pass": 164}
    assert found["measures"]["pass@1"]["value"] == 100


@needs_sandbox
@needs_data
def test_released_outputs_of_the_study_are_scored(tmp_path):
    """Of 164 problems the first four: 20 outputs each, as the study published them."""
    name = "generations-humanevalsynthesizepython-starcoderbase-1b-lora.json.gz"
    words = ["--data", f"{DATA}", "--generations", f"{DATA / 'astraios_outputs' / name}"]
    words += ["--limit", "4", "--output", str(tmp_path)]
    assert suite(["humanevalpack-synthesize-python", *words]) == 0
    folder = tmp_path / "humanevalpack-synthesize-python"
    found = json.loads((folder / "suite.json").read_text())
    assert found["measures"].keys() == {"pass@1", "pass@10"}
    lines = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    assert len(lines) == 80
    # By one plain interpreter for program and tests, when this test was written.
    passed = [sum(one["verdict"] == "pass" for one in lines[n : n + 20]) for n in (0, 20, 40, 60)]
    assert passed == [19, 0, 20, 0]
    assert found["measures"]["pass@1"]["value"] == pytest.approx(100 * 39 / 80)
    assert found["measures"]["pass@10"]["value"] == pytest.approx(50)


@needs_data
def test_every_file_is_known_by_its_columns():
    for language in LANGUAGES:
        assert shape_of(rows(language)[0]) == f"humanevalpack-{language}"
    with gzip.open(DATA / "humaneval" / "HumanEval.jsonl.gz", "rt") as stream:
        assert shape_of(json.loads(stream.readline())) == "humaneval"
    with (DATA / "aatk" / "scenario_dow.jsonl").open() as stream:
        assert shape_of(json.loads(stream.readline())) == "aatk"
    assert first_shape(next((DATA / "recode_humaneval_s0-4").glob("*.tar.xz"))) == "recode"
    assert {one.shape for one in SUITES.values()} >= {"defect", "clone", "humaneval"}
