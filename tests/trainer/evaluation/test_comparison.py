"""Runs are compared as a plain loop would, and only where they measured the same."""

import json
import re
import shutil
import string
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from function_runs import LABELS, NUM, recipe, run, scores_of
from scipy.stats import binom
from sklearn import metrics as sk

from data.text.labels import Classes
from launcher.compare import main
from trainer.errors import ConfigError
from trainer.evaluation.comparison.compare import comparison, grouped, mcnemar
from trainer.evaluation.comparison.runs import MeasuredRun, paired, read_run
from trainer.evaluation.decision import Decision
from trainer.evaluation.figures import differences_svg
from trainer.evaluation.functions.class_evaluation import write_class_report
from trainer.evaluation.language.report import LanguageScores, write_language_report
from trainer.evaluation.language.sums import TokenSums
from trainer.evaluation.predictors import ClassScored
from trainer.evaluation.resampling import Resampling

CURVES = {"train loss": [(1.0, 4.0)]}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Pictures take most of the time; one test draws one."""
    monkeypatch.setattr("trainer.evaluation.figures.svg", lambda _: b"")


@pytest.fixture
def two(base, tmp_path):
    weak = run(base, tmp_path / "weak", scores_of(1, 0.1), "optim.lr=1e-3")
    return weak, run(base, tmp_path / "strong", scores_of(2, 0.5), threshold=0.45)


def compared(tmp_path, *folders, code=0, split="test"):
    output = tmp_path / "out"
    assert main([*map(str, folders), "--out", str(output), "--split", split]) == code
    return json.loads((output / "compare.json").read_text()) if code == 0 else None


def test_losses_time_and_memory_of_the_logs_are_compared(two, tmp_path, monkeypatch):
    monkeypatch.undo()  # pictures are drawn
    keys = ("step", "loss", "train_seconds", "tokens_per_second", "memory_gib")
    logged = [(1, 2.0, 5.0, 100.0, 1.5), (2, 1.0, 9.0, 300.0, 1.25), (3, 1.0, 11.0, 120.0, 1.0)]
    lines = [json.dumps({"kind": "train", **dict(zip(keys, row, strict=True))}) for row in logged]
    (two[1] / "log.jsonl").write_text("\n".join([*lines, '{"kind": "valid", "step": 3}\n']))
    weak, strong = (group["runs"][0] for group in compared(tmp_path, *two)["groups"])
    assert weak["resources"] == {}
    assert strong["resources"] == {
        "train_seconds": 11.0, "tokens_per_second": 120.0, "memory_gib": 1.5,
    }  # fmt: skip
    drawn = sorted(path.name for path in (tmp_path / "out").glob("*.svg"))
    assert drawn == ["compare.svg", "compare_train.svg"]  # no validation has a loss
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count(">Training loss</text>") == page.count(">Differences on test</text>") == 1
    assert ">B: strong</text>" in page
    assert "<h1>A: weak, B: strong</h1>" in page


def rewrite(path, change):
    """The lines of a predictions file, each changed by number."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [change(number, row) for number, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row is not None))


def plain_intervals(metric, first, other, groups, num):
    """A difference over resamples of whole groups, one resample at a time."""
    members = [np.flatnonzero(np.array(groups) == group) for group in dict.fromkeys(groups)]
    drawn = np.random.default_rng(0).integers(len(members), size=(num, len(members)))
    differences = []
    for chosen in drawn:
        places = np.concatenate([members[group] for group in chosen])
        differences.append(
            metric(*(v[places] for v in other)) - metric(*(v[places] for v in first))
        )
    return np.quantile(differences, [0.025, 0.975])


def test_mcnemar_is_the_binomial_test_of_a_table_worked_out_by_hand():
    # right: both 3, the first alone 1, the other alone 5, neither 1
    first = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    other = np.array([1, 1, 1, 0, 1, 1, 1, 1, 1, 0], bool)
    found = mcnemar(first, other)
    assert (found["only_first_right"], found["only_other_right"]) == (1, 5)
    assert found["p"] == pytest.approx(2 * (1 + 6) / 2**6)  # 6 tosses, at most one head, twice
    assert mcnemar(first, first)["p"] == 1.0
    # McNemar's own approximation, with correction: (|b - c| - 1)^2 / (b + c), at many discordant
    many = mcnemar(np.repeat([True, False], [400, 600]), np.repeat([False, True], [400, 600]))
    assert many["p"] == pytest.approx(2 * binom.cdf(400, 1000, 0.5), rel=1e-9)
    assert many["p"] == pytest.approx(2.9e-10, rel=0.2)  # erfc(199 / sqrt(2000))


def test_differences_over_groups_of_seeds_are_those_of_a_plain_loop(base, tmp_path):
    scores = {
        "a": [scores_of(n, 0.15) for n in (1, 2, 3)],
        "b": [scores_of(n, 0.5) for n in (4, 5)],
    }
    thresholds = {"a": [0.5, 0.4, 0.6], "b": [0.45, 0.5]}
    folders = []
    for name, lr in (("a", "1e-3"), ("b", "2e-3")):
        for seed, (one, threshold) in enumerate(zip(scores[name], thresholds[name], strict=True)):
            folder, more = tmp_path / name / f"seed-{seed}", (f"run.seed={seed}", f"optim.lr={lr}")
            more += ("save.keep=3",) * seed  # changes nothing that is learned
            folders.append(run(base, folder, one, *more, threshold=threshold))
    found = compared(tmp_path, *folders)
    first, other = found["groups"]
    assert [row["seed"] for row in first["runs"]] == [0, 1, 2]
    assert (first["title"], other["title"]) == (
        "A: a/seed-0 and 2 more seeds", "B: b/seed-0 and 1 more seed",
    )  # fmt: skip
    assert found["settings"] == {"optim.lr": [0.001, 0.002]}
    for name, group in (("a", first), ("b", other)):
        aucs = [sk.roc_auc_score(LABELS, one) for one in scores[name]]
        assert group["mean"]["roc_auc"] == pytest.approx(np.mean(aucs))
        assert group["sd"]["roc_auc"] == pytest.approx(np.std(aucs, ddof=1))
        averaged = np.mean(scores[name], axis=0)
        assert group["averaged"]["roc_auc"] == pytest.approx(sk.roc_auc_score(LABELS, averaged))
    means = {name: np.mean(scores[name], axis=0) for name in scores}
    answers = {name: means[name] >= np.mean(thresholds[name]) for name in scores}
    groups, [difference] = [n // 2 for n in range(NUM)], found["differences"]
    runs = paired([read_run(folder, folder.name, "test") for folder in folders])
    fewer = comparison(runs, Resampling(num_resamples=100))["differences"][0]
    for key, metric, values in (
        ("roc_auc", sk.roc_auc_score, means),
        ("pr_auc", sk.average_precision_score, means),
        ("f1", sk.f1_score, answers),
        ("mcc", sk.matthews_corrcoef, answers),
    ):
        whole = metric(LABELS, values["b"]) - metric(LABELS, values["a"])
        ends = plain_intervals(metric, (LABELS, values["a"]), (LABELS, values["b"]), groups, 100)
        assert difference["measures"][key]["difference"] == pytest.approx(whole, abs=1e-12)
        assert fewer["measures"][key]["interval"] == pytest.approx(ends, abs=1e-12)
        assert ends[0] < ends[1]
    assert difference["measures"]["roc_auc"]["verdict"] == "better than"
    assert difference["measures"]["precision"]["interval"] is None
    assert any("precision" in what for what in found["not_compared"])
    right = {name: answers[name] == LABELS for name in answers}
    assert difference["mcnemar"]["only_other_right"] == (right["b"] & ~right["a"]).sum()
    page = (tmp_path / "out" / "compare.md").read_text()
    assert f"n = 3 | {first['mean']['roc_auc']:.3f} ± {first['sd']['roc_auc']:.3f} |" in page
    assert "It covers which functions were drawn for the test set, and nothing else" in page
    assert "the sd over n seeds says how much another would change" in page


def test_changed_functions_are_listed_with_the_most_confident_first(base, tmp_path):
    first, other = np.full(NUM, 0.2), np.full(NUM, 0.2)
    for place, pair in ((4, (0.1, 0.9)), (7, (0.4, 0.6)), (9, (0.8, 0.3)), (10, (0.1, 0.45))):
        first[place], other[place] = pair
    one = run(base, tmp_path / "one", first)
    two = run(base, tmp_path / "two", other, "optim.lr=1e-3", threshold=0.48)
    [difference] = compared(tmp_path, one, two)["differences"]
    listed = [
        (row["id"], row["first"], row["other"], row["right"]) for row in difference["changed"]
    ]
    assert listed == [("f4", 0, 1, ["first"]), ("f9", 1, 0, ["first"]), ("f7", 0, 1, ["other"])]
    assert difference["changed"][0]["moved"] == pytest.approx(0.4 + 0.42)
    assert (
        "| f9 | a.c:9 | CWE-787 | 1 | 1 | 0 | A | 0.480 |"
        in (tmp_path / "out" / "compare.md").read_text()
    )


def test_predictions_in_another_order_are_paired_by_id(two, tmp_path, capsys):
    expected = compared(tmp_path, *two)
    path = two[1] / "report" / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(lines)))
    assert compared(tmp_path, *two) == expected
    printed = capsys.readouterr().out
    low, high = expected["differences"][0]["measures"]["roc_auc"]["interval"]
    assert f"[{low:+.3f}, {high:+.3f}]" in printed
    assert "(McNemar, exact: p = " in printed
    deeper = shutil.copytree(two[1], tmp_path / "deeper" / "strong")
    assert main([str(two[0]), str(deeper)]) == 0
    assert (tmp_path / "comparison" / "compare.md").is_file()
    assert not (tmp_path / "deeper" / "comparison").exists()


def test_the_picture_has_a_panel_for_each_measure_and_colours_each_difference(monkeypatch):
    monkeypatch.undo()
    points = [("B - A", 0.1, (-0.1, 0.3)), ("C - A", -0.2, None)]
    drawn = [differences_svg("on test", {"AUC": points, "F1": points[:1]}) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert set(re.findall(rb"stroke: (#\w{6})", drawn[0])) == {b"#8c8c8c", b"#0072b2", b"#d55e00"}
    assert all(f">{heading}</text>".encode() in drawn[0] for heading in ("AUC", "F1", "C - A"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n, row: row if n > 2 else row | {"id": f"new {n}"},
         "3 functions are only in it, e.g. 'new 0'; 3 functions are missing, e.g. 'f0'"),
        (lambda n, row: row | {"digest": "other"} if n in (3, 5) else row,
         "2 texts differ, e.g. 'f3'"),
    ],
)  # fmt: skip
def test_other_functions_are_refused_with_how_many_and_which(change, said, two, tmp_path, capsys):
    rewrite(two[1] / "report" / "predictions.jsonl", change)
    compared(tmp_path, *two, code=3)
    assert f"was not measured on what {two[0]} was: {said};" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_labels_and_other_classes_are_refused(base, two, tmp_path, capsys):
    labels = LABELS.copy()
    labels[[6, 8]] = 1
    other = run(base, tmp_path / "labels", scores_of(2, 0.5), labels=labels)
    compared(tmp_path, two[0], other, code=3)
    assert "2 labels differ, e.g. 'f6'" in capsys.readouterr().err
    compared(tmp_path, two[0], language(base, tmp_path / "texts", 0.0), code=3)
    assert "it learned ('tokens', [], None), the other ('functions'" in capsys.readouterr().err


def test_texts_of_an_older_version_are_named_as_not_compared(two, tmp_path):
    rewrite(two[0] / "report" / "predictions.jsonl",
            lambda _, row: {key: row[key] for key in row if key != "digest"})  # fmt: skip
    assert "texts" in compared(tmp_path, *two)["not_compared"]


def test_seeds_of_one_setting_alone_have_a_mean_and_a_spread(base, tmp_path):
    folders = [
        run(base, tmp_path / f"seed-{n}", scores_of(n, 0.3), f"run.seed={n}") for n in (1, 2)
    ]
    found = compared(tmp_path, *folders)
    assert (found["differences"], found["settings"]) == ([], {})
    aucs = [sk.roc_auc_score(LABELS, scores_of(n, 0.3)) for n in (1, 2)]
    assert found["groups"][0]["sd"]["roc_auc"] == pytest.approx(abs(aucs[0] - aucs[1]) / 2**0.5)
    assert "There is nothing to compare them with" in (tmp_path / "out" / "compare.md").read_text()
    assert not (tmp_path / "out" / "compare.svg").exists()


def test_there_are_as_many_groups_as_letters():
    runs = [MeasuredRun(None, "", {"optim.lr": n}, {"facts": {}}, ()) for n in range(27)]
    assert "".join(group.letter for group in grouped(runs[:26])) == string.ascii_uppercase
    with pytest.raises(ConfigError, match="27 settings; compare at most 26"):
        grouped(runs)


def cut(folder):
    path = folder / "report" / "predictions.jsonl"
    path.write_bytes(path.read_bytes()[:-40])


def lose_a_line(folder):
    rewrite(folder / "report" / "predictions.jsonl", lambda n, row: row if n else None)


def change_a_score(folder):
    rewrite(folder / "report" / "predictions.jsonl",
            lambda n, row: row if n else row | {"score": 1.0})  # fmt: skip


def break_the_report(folder):
    (folder / "report" / "test.json").write_text('{"files": {}, "facts": {}}')


def train_on(folder):
    (folder / "log.jsonl").write_text('{"kind": "train", "step": 9, "loss": 1.0}\n')


def remove_the_report(folder):
    (folder / "report" / "test.json").unlink()


def remove_the_recipe(folder):
    (folder / "config.yaml").unlink()


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        (cut, 4, "predictions.jsonl is damaged"),
        (lose_a_line, 4, "it has 59 lines, the report 60"),
        (change_a_score, 4, "its roc_auc is "),
        (break_the_report, 4, "test.json is damaged"),
        (train_on, 4, "has trained on since its report; let the run finish"),
        (remove_the_report, 4, "has no report on test (it has none yet); let the run finish"),
        (remove_the_recipe, 2, "is not a run folder"),
    ],
)
def test_damaged_and_unfinished_runs_are_refused_by_name(damage, code, said, two, tmp_path, capsys):
    damage(two[1])
    compared(tmp_path, *two, code=code)
    error = capsys.readouterr().err
    assert str(two[1]) in error
    assert said in error


def test_a_run_given_twice_or_alone_is_a_wrong_command(two, tmp_path, capsys):
    compared(tmp_path, two[0], two[0], code=2)
    compared(tmp_path, two[0], code=2)
    assert capsys.readouterr().err.count("give two or more runs, each once") == 2


@pytest.mark.parametrize("is_one", [True, False])
def test_classes_are_compared_by_whole_answers(is_one, base, tmp_path):
    names = ("safe", "CWE-120", "CWE-416")
    generator, folders, scored = np.random.default_rng(0), [], []
    cuts = np.array([[0.5, 0.5, 0.5], [0.3, 0.5, 0.7]])  # of weak and strong, where several hold
    holds = np.eye(3, dtype=bool)[generator.integers(0, 3, NUM)] if is_one else (
        generator.random((NUM, 3)) < 0.4
    )  # fmt: skip
    for (name, strength), cut_C in zip((("weak", 0.1), ("strong", 0.8)), cuts, strict=True):
        noise = generator.random((NUM, 3))
        scores = (noise + strength * holds) / (1 + strength)
        one = ClassScored(scores, holds, is_one, 0.5 if is_one else cut_C)
        rows = []
        for n in range(NUM):
            label = [names[c] for c in np.flatnonzero(holds[n])]
            row = {"id": f"f{n}", "origin": f"a:{n}", "label": label[0] if is_one else label}
            row |= {"scores": one.scores_NC[n].tolist(), "group": "", "cwe": "", "note": ""}
            rows.append(row | {"digest": str(n)})
        folder = recipe(base, tmp_path / name, f"loss.gamma={strength}")
        classes = Classes(names, sets=None if is_one else ((),))
        prior_C = np.full(3, 1 / 3)
        write_class_report(folder / "report", "test", rows, one, Decision(), classes, prior_C, {})
        folders.append(folder)
        scored.append(one)
    found = compared(tmp_path, *folders)
    [difference] = found["differences"]
    maps = [sk.average_precision_score(holds, one.scores_NC) for one in scored]
    assert difference["measures"]["mean_ap"]["difference"] == pytest.approx(maps[1] - maps[0])
    if is_one:
        right = [one.scores_NC.argmax(1) == holds.argmax(1) for one in scored]
    else:
        right = [
            ((one.scores_NC >= cut_C) == holds).all(1)
            for one, cut_C in zip(scored, cuts, strict=True)
        ]
        above = [one.scores_NC - cut_C for one, cut_C in zip(scored, cuts, strict=True)]
        for row in difference["changed"]:
            pairs = zip(above[0][int(row["id"][1:])], above[1][int(row["id"][1:])], strict=True)
            crossed = [abs(a - b) for a, b in pairs if (a >= 0) != (b >= 0)]
            assert row["moved"] == pytest.approx(sum(crossed))
    assert difference["mcnemar"]["only_other_right"] == (right[1] & ~right[0]).sum() > 0
    moved = [row["moved"] for row in difference["changed"]]
    assert moved == sorted(moved, reverse=True)
    assert len(moved) > difference["mcnemar"]["only_other_right"]
    assert found["settings"] == {"loss.gamma": [0.1, 0.8]}


def language(base, folder, gain, num=NUM, num_dropped=0):
    """A finished language run whose texts have a chosen loss."""
    task = ("task.name=instruction", "data.packing=false", f"run.seed={int(100 * gain)}")
    recipe(base, folder, *task, f"loss.gamma={gain}")
    generator = np.random.default_rng(3)
    count = generator.integers(1, 50, num).astype(float)
    count[:num_dropped], count[-1] = 0, 1
    nll = count * generator.uniform(2, 4, num) - gain * count * generator.random(num)
    sums = TokenSums(nll, np.floor(count / 2), count)
    ids = [f"t{n}" for n in range(num)]
    scores = LanguageScores(ids, ids, sums, None, None, {"a.json": 0}, [], CURVES)
    write_language_report(folder / "report", "test", scores, {"steps": 8})
    return folder


def test_losses_of_texts_are_compared_over_the_same_texts(base, tmp_path):
    folders = [language(base, tmp_path / name, gain) for name, gain in (("a", 0.0), ("b", 0.2))]
    found = compared(tmp_path, *folders)
    rows = [
        [json.loads(line) for line in (f / "report" / "predictions.jsonl").read_text().splitlines()]
        for f in folders
    ]
    sums = [
        [np.array([row[key] for row in each]) for key in ("nll", "num_targets")] for each in rows
    ]
    loss = found["differences"][0]["measures"]["loss"]
    ends = plain_intervals(lambda nll, num: nll.sum() / num.sum(), *sums, range(NUM), 1000)
    assert loss["interval"] == pytest.approx(ends, abs=1e-12)
    assert ends[1] < 0
    assert loss["verdict"] == "better than"
    assert "McNemar's test and changed answers" in found["not_compared"]
    rewrite(folders[1] / "report" / "predictions.jsonl",
            lambda n, row: row | {"digest": "other"} if n == 5 else row)  # fmt: skip
    compared(tmp_path, *folders, code=3)
    for num, has_interval in ((24, False), (25, True)):  # 20 records with targets are enough
        few = [
            language(base, tmp_path / f"{name} {num}", gain, num, num_dropped=5)
            for name, gain in (("c", 0.0), ("d", 0.2))
        ]
        alone = compared(tmp_path, *few)
        interval = alone["differences"][0]["measures"]["loss"]["interval"]
        assert (interval is not None) == has_interval
        said = any("they need 20 records" in why for why in alone["not_compared"].values())
        assert said != has_interval


def test_a_comparison_loads_no_torch_and_any_split_is_compared(two, tmp_path):
    for folder in two:
        report = json.loads((folder / "report" / "test.json").read_text())
        shutil.copy(folder / "report" / "predictions.jsonl", folder / "report" / "x.jsonl")
        report["files"]["predictions"] = "x.jsonl"
        (folder / "report" / "other.json").write_text(json.dumps(report))
    code = (
        "import sys\nfrom launcher.compare import main\n"
        f"code = main([{str(two[0])!r}, {str(two[1])!r}, '--split', 'other'])\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)\nsys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    assert (tmp_path / "comparison" / "compare.json").is_file()
