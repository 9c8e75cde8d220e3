"""The page of a report is one file without a request or a script, and says what its JSON says."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from data.text.labels import Classes
from trainer.evaluation.decision import Decision
from trainer.evaluation.functions.baselines import TFIDF_LOGISTIC, Baseline
from trainer.evaluation.functions.class_evaluation import write_class_report
from trainer.evaluation.functions.predictions import DROPPED, Prediction
from trainer.evaluation.functions.report import write_function_report
from trainer.evaluation.language.report import LanguageScores, write_language_report
from trainer.evaluation.language.sums import TokenSums
from trainer.evaluation.page import page as pages
from trainer.evaluation.predictors import ClassScored

HOSTILE = "</pre></td><script>alert(1)</script>![x](http://e/x.svg)[y](http://e) $\\nope$ `|\x1b[2J"
SHOWN = HOSTILE.replace("\x1b", "\\x1b")


class Parsed(HTMLParser):
    """Elements and texts of a page; the texts of the cells of every row of a table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.rows = set(), [], "", []
        self._depth = 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._depth = 1

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._depth = 0

    def handle_data(self, data):
        self.text += data
        if self._depth:
            self.rows[-1][-1] += data


def checked(folder, title="run"):
    """The page of a folder, in which nothing is loaded, run or left open."""
    page = pages.write_page(folder, title).read_text()
    parsed = Parsed(page)
    assert not parsed.tags & {"script", "link", "img", "image", "iframe", "object", "base", "form"}
    assert not re.search(r"^\| .* \|$", parsed.text, re.MULTILINE)  # a table that is none
    names = {name for name, _ in parsed.attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"src", "action"}
    for name, value in parsed.attributes:
        if name.endswith("href"):
            assert value.startswith("#")
    assert "url(#" in page or "url(" not in page  # the clip of a picture
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert not any(word in page for word in ("@import", "\x1b", 'http:"', "xmlns"))
    styled = "".join(re.findall(r"<style>.*?</style>", page, re.DOTALL))
    assert "http" not in styled
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    return parsed


def written(folder, num=60):
    """The report of a model whose first answers are the worst; one function was dropped."""
    labels = np.arange(num) % 2
    scores = np.where(np.arange(num) < 30, 0.999 - labels * 0.998, labels * 0.8 + 0.1)
    scores[:30] += np.where(labels[:30], 1, -1) * np.arange(30) / 100  # ever less wrong
    rows = [
        Prediction(
            id=f"f{n} {HOSTILE}", origin=f"{HOSTILE}.c:{n}", label=int(label), score=float(score),
            predicted=int(score >= 0.5), group="", cwe=HOSTILE, status=HOSTILE, num_tokens=9,
            note=DROPPED if n == 0 else "", project=HOSTILE, language=HOSTILE,
        )
        for n, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]  # fmt: skip
    words = Baseline(np.linspace(0, 1, num), 0.5)
    return write_function_report(
        folder, "test", rows, Decision(0.5), {TFIDF_LOGISTIC: words}, {HOSTILE: HOSTILE},
        names=("safe", HOSTILE), text_of=lambda place: f"void f{place}() {{\n{HOSTILE}\n}}",
    )  # fmt: skip


def test_figures_of_the_page_are_those_of_the_json_and_texts_are_text(tmp_path):
    report = written(tmp_path)
    parsed = checked(tmp_path, f"a run {HOSTILE}")
    assert parsed.text.count(f"a run {SHOWN}") == 2  # title and heading
    for name, one in report["predictors"].items():
        cells = [name]
        for key in ("roc_auc", "pr_auc", "f1", "mcc"):
            low, high = one["intervals"][key]
            cells.append(f"{one['metrics'][key]:.3f} [{low:.3f}, {high:.3f}]")
        assert cells in parsed.rows
    m = report["predictors"]["model"]["metrics"]
    assert ["safe", str(m["tn"]), str(m["fp"])] in parsed.rows
    assert f"The model is {report['comparison']['verdict']}." in parsed.text
    for title in ("ROC on test", "Precision-recall on test", "Reliability on test"):
        assert parsed.text.count(title) == 2  # the name of the picture, and what it draws
    one_line = " ".join(SHOWN.split())
    assert any(row[0] == one_line for row in parsed.rows)  # a slice


def test_the_twenty_most_confident_errors_have_their_code_without_the_dropped_one(
    tmp_path,
):
    errors = written(tmp_path)["errors"]
    assert [e["id"].split()[0] for e in errors] == [f"f{n}" for n in range(1, 21)]
    assert errors[0] == {
        "id": f"f1 {HOSTILE}", "origin": f"{HOSTILE}.c:1", "cwe": HOSTILE, "label": HOSTILE,
        "predicted": "safe", "score": pytest.approx(0.011), "text": f"void f1() {{\n{HOSTILE}\n}}",
    }  # fmt: skip
    parsed = checked(tmp_path)
    for n in range(1, 21):
        assert f"void f{n}() {{\n{SHOWN}\n}}" in parsed.text
    assert "void f21" not in parsed.text


def test_a_long_text_is_shown_by_its_beginning(tmp_path):
    rows = [Prediction("a", "a", n, 1.0 - n, 1 - n, "", "", "", 1) for n in (0, 1)]
    long = "x\n" * 100
    report = write_function_report(
        tmp_path, "test", rows, Decision(0.5), {}, {}, text_of=lambda n: (long, "y" * 9999)[n]
    )
    assert [e["text"] for e in report["errors"]] == ["x\n" * 60 + "...", "y" * 6000 + "\n..."]


@pytest.mark.parametrize("is_one", [True, False])
def test_names_of_many_classes_are_text_and_the_worst_error_is_first(tmp_path, is_one):
    names = ("safe", HOSTILE, "_$x")
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.9, 0.05, 0.05]])
    holds = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=np.bool_)
    labels = ["safe", "safe", "_$x"] if is_one else [["safe"], ["safe"], []]
    keys = {"origin": HOSTILE, "predicted": HOSTILE, "cwe": "", "group": "", "note": ""}
    rows = [{"id": f"f{n}", "label": label} | keys for n, label in enumerate(labels)]
    report = write_class_report(
        tmp_path, "test", rows, ClassScored(scores, holds, is_one, 0.5), Decision(),
        Classes(names, sets=None if is_one else ((),)), np.ones(3) / 3, {},
        text_of=lambda place: f"{HOSTILE} {place}",
    )  # fmt: skip
    # By hand: the third has 0.05 where its label is; the second 0.1.
    found = [(e["id"], e["distance"]) for e in report["errors"]]
    assert found == [("f2", pytest.approx(0.95)), ("f1", pytest.approx(0.9))]
    parsed = checked(tmp_path)
    assert parsed.text.count("Confusion on test") == (2 if is_one else 0)
    assert f"{SHOWN} 2" in parsed.text
    by_class = [row for row in parsed.rows if row[0] == " ".join(SHOWN.split())]
    assert [row[1:4] for row in by_class if len(row) >= 9] == [["0", "1", "0"]]


def test_samples_of_a_language_model_are_text_and_the_highest_loss_is_first(tmp_path):
    model = TokenSums(np.array([9.0, 8.0, 0.0]), np.array([1, 1, 0]), np.array([9, 2, 0]))
    sample = {"prompt": HOSTILE, "answer": f"a\n{HOSTILE}", "reference": HOSTILE, "ended": True}
    scores = LanguageScores(
        ["a", "b", "c"], ["", "", ""], model, None, None, {"f": 0}, [sample],
        {"train loss": [(1, 2.0), (2, 1.0)]}, lambda place: f"{HOSTILE} {place}",
    )  # fmt: skip
    report = write_language_report(tmp_path, "test", scores, {})
    assert [(e["id"], e["loss"]) for e in report["errors"]] == [("b", 4.0), ("a", 1.0)]
    parsed = checked(tmp_path)
    assert f"a\n{SHOWN}" in parsed.text
    assert "4.000 nats a token b" in " ".join(parsed.text.split())
    assert parsed.text.count("Loss over steps") == 2


def test_all_reports_of_a_folder_are_on_the_page_test_first(tmp_path):
    for name in ("again", "test", "test_robustness"):
        (tmp_path / f"{name}.md").write_text(f"# On {name}\n")
    parsed = checked(tmp_path)
    places = [parsed.text.index(f"On {name}\n") for name in ("test", "test_robustness", "again")]
    assert places == sorted(places)
    assert {("href", "#again"), ("id", "again")} <= set(parsed.attributes)


def test_a_page_that_cannot_be_written_costs_no_run(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyError("charts")

    monkeypatch.setattr(pages, "write_page", fail)
    assert pages.page_line(tmp_path, tmp_path) == "page    was not written: KeyError: 'charts'"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to open a page with")
def test_a_browser_opens_the_page_without_a_word_on_its_console(tmp_path):
    written(tmp_path)
    page = pages.write_page(tmp_path, HOSTILE)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--disable-background-networking", f"--log-net-log={tmp_path / 'net.json'}"]
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert Parsed(done.stdout).text.count("ROC on test") == 2
    assert "CONSOLE" not in done.stderr
    asked = re.findall(r'"url":"([^"]*)', (tmp_path / "net.json").read_text())
    assert not [url for url in asked if "//e" in url]
    assert json.loads((tmp_path / "test.json").read_text())["errors"]
