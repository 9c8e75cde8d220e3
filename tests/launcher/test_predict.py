"""predict: functions of a tree get the scores that evaluate gives them."""

import json
import os
import subprocess
from types import SimpleNamespace

import pytest
from conftest import sample_rows, write_rows
from rank_pool import run_ranks

from launcher.predict import main as predict

ENDINGS = {"java": "java", "c": "c", "python": "py"}


ROWS = [row | {"code": str(row["code"]).rstrip("\n")} for row in sample_rows("test", 20)]


@pytest.fixture(scope="module")
def finished(tiny_recipe, tmp_path_factory):
    """A run whose test functions end as they do in files; long ones are cut into windows."""
    folder = tmp_path_factory.mktemp("predicted")
    test = write_rows(folder / "test.jsonl", ROWS)
    words = [str(tiny_recipe), f"run.output_dir={folder / 'run'}", f"data.test={test}"]
    assert run_ranks([*words, "data.long_functions=window", "data.seq_length=128"]) == [0]
    return folder / "run"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A file for each test function of the run, and what a tree has besides."""
    folder = tmp_path_factory.mktemp("tree")
    for number, row in enumerate(ROWS):
        language = str(row["language"]).lower()
        path = folder / language / f"f{number:02}.{ENDINGS[language]}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(wrapped(row, language))
    (folder / "broken.c").write_text("int ok(void) { return 1; }\nint bad(void) { return 1 +; }\n")
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "x.js").write_text("function f() { return 1; }")
    (folder / "binary.c").write_bytes(b"\0\1\2")
    (folder / "loop").symlink_to(folder)
    return folder


def wrapped(row, language):
    return f"class X {{\n{row['code']}\n}}\n" if language == "java" else f"{row['code']}\n"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_functions_have_the_scores_of_evaluate_and_the_rest_is_counted(
    finished, tree, tmp_path, capsys
):
    out = tmp_path / "all.json"
    words = [str(finished), str(tree), "--format", "json", "--output", str(out)]
    assert predict(words) == 0, capsys.readouterr().err
    report = json.loads(out.read_text())
    own = lines_of(finished / "report" / "predictions.jsonl")
    assert len({one["score"] for one in own}) > 10
    found = {one["file"]: one for one in report["functions"]}
    compared = 0
    for number, (row, one) in enumerate(zip(ROWS, own, strict=True)):
        language = str(row["language"]).lower()
        scored = found.get(f"{language}/f{number:02}.{ENDINGS[language]}")
        if scored is None:
            continue
        # other functions share its row, so the last digits differ
        assert scored["score"] == pytest.approx(one["score"], abs=1e-5)
        assert scored["num_tokens"] == one["num_tokens"]
        assert bool(scored["answer"]) == bool(one["predicted"])
        compared += 1
    assert compared >= 15
    facts = report["focaltune"]
    assert any(one["num_tokens"] > 128 for one in report["functions"])  # cut into windows
    assert facts["skipped"]["functions with a syntax error"] == 1
    assert facts["skipped"]["vendored folders"] == 1
    assert facts["skipped"]["links"] == 1
    assert facts["skipped"]["not text in UTF-8"] == 1
    assert facts["num_functions"] == len(report["functions"])
    assert found["broken.c"]["function"] == "ok"
    assert facts["model"]["temperature"] is not None
    assert sum(facts["model"]["training_languages"].values()) == 40
    assert facts["never_seen"]["languages"] == []
    ranks = [one["score"] for one in report["functions"]]
    assert ranks == sorted(ranks, reverse=True)


def test_three_ranks_write_the_bytes_of_one_in_every_format(finished, tree, tmp_path):
    for form in ("json", "csv", "sarif", "html", "text", "jsonl"):
        words = ["--top", "100", "--all"] if form == "text" else []
        for num in (1, 3) if form in ("json", "sarif") else (1,):
            out, printed = tmp_path / f"{num}.{form}", tmp_path / f"{num}.txt"
            command = [str(finished), str(tree), "--format", form, "--output", str(out), *words]
            codes = run_ranks([*command, "--fail-above", "0.0"], num, printed, entry=predict)
            assert codes == [1] * num, printed.read_text()[-3000:]
        if form in ("json", "sarif"):
            assert (tmp_path / f"1.{form}").read_bytes() == (tmp_path / f"3.{form}").read_bytes()
    assert "x.js" in (tmp_path / "1.text").read_text()


def test_the_exit_code_says_whether_a_probability_is_above(finished, tree, capsys):
    words = [str(finished), str(tree / "c"), "--format", "jsonl"]
    assert predict(words) == 0
    highest = max(json.loads(line)["probability"] for line in capsys.readouterr().out.splitlines())
    assert predict([*words, "--fail-above", str(highest)]) == 0
    assert predict([*words, "--fail-above", str(highest - 1e-9)]) == 1


def test_only_what_changed_is_scored_and_an_earlier_report_is_a_baseline(
    finished, tmp_path, capsys
):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
    code = "int a(int x) {\n  return x;\n}\n\nint b(int x) {\n  return x;\n}\n"
    (tmp_path / "s.c").write_text(code)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "s.c").write_text(
        "/* new */\n" + code.replace("return x;\n}\n\n", "return 2;\n}\n\n")
    )
    words = [str(finished), str(tmp_path), "--format", "jsonl"]
    assert predict([*words, "--changed-since", "HEAD"]) == 0
    (one,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (one["function"], one["line"], one["file"]) == ("a", 2, "s.c")
    assert predict([*words, "--changed-since=--all"]) == 2
    assert "does not begin with -" in capsys.readouterr().err


def test_output_never_replaces_a_file_of_somebody_else(finished, tree, tmp_path, capsys):
    mine = tmp_path / "mine.json"
    mine.write_text('{"precious": 1}')
    words = [str(finished), str(tree / "c"), "--format", "json", "--output"]
    assert predict([*words, str(mine)]) == 2
    assert "exists and is not from predict" in capsys.readouterr().err
    assert mine.read_text() == '{"precious": 1}'
    for form in ("json", "jsonl", "csv", "sarif", "html", "text"):
        out = tmp_path / f"x.{form}"
        for _ in range(2):  # its own it replaces
            command = [*words, str(out), "--format", form]
            assert predict(command) == 0, capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["mine.json", *(f"x.{form}" for form in ("json", "jsonl", "csv", "sarif", "html", "text"))]
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--top", "0"], "--top 0"),
        (["--fail-above", "1.5"], "--fail-above 1.5"),
        (["--baseline", "/nowhere.sarif"], "/nowhere.sarif"),
        (["/nowhere"], "/nowhere does not exist"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_model_loads(tmp_path, words, said, capsys):
    assert predict([str(tmp_path), str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_learned_no_functions_is_refused(tree, monkeypatch, capsys):
    opened = SimpleNamespace(
        config=SimpleNamespace(is_language=True, task=SimpleNamespace(name="x"))
    )
    monkeypatch.setattr("trainer.prediction.predict.open_trained", lambda *_: opened)
    assert predict(["MODEL", str(tree)]) == 2
    assert "MODEL learned x; predict takes a model that learned" in capsys.readouterr().err
