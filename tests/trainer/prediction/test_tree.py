"""Answers of every kind of classifier, chunks, and which functions are read: scores by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from data.text.labels import Classes
from trainer.evaluation.decision import Decision
from trainer.prediction import tree as module
from trainer.prediction.scoring import ChunkScores
from trainer.prediction.tree import Tree, scored_functions
from trainer.prediction.walking import Walk

SOURCE = (
    "int a(void) { return 1; }\nint b(void) { return 2; /* focaltune: ignore */ }\nint c(void) {}\n"
)


def scored(folder, monkeypatch, classes, decision, rows, lines=None):
    """The functions of a folder, with one row of scores after the other; None: it was dropped."""
    given, sizes = iter(rows), []

    def score_chunk(trained, model, codes, ranks):
        sizes.append(len(codes))
        chosen = [next(given) for _ in codes]
        num = len(classes.names)
        scores_NC = np.array([row or [0.0] * num for row in chosen])
        is_scored_N = np.array([row is not None for row in chosen])
        return ChunkScores(scores_NC, np.arange(len(codes), dtype=np.int32), is_scored_N)

    monkeypatch.setattr(module, "score_chunk", score_chunk)
    tree = Tree(Walk([folder]), lines)
    trained = SimpleNamespace(classes=classes, decision=decision)
    found = list(scored_functions(tree, trained, None, None))
    return tree, found, sizes


def test_two_classes_have_one_threshold_and_a_temperature(tmp_path, monkeypatch):
    (tmp_path / "s.c").write_text(SOURCE)
    rows = [[0.8, 0.2], [0.1, 0.9], [0.7, 0.3]]
    decision = Decision(threshold=0.3, temperature=2.0)
    tree, found, _ = scored(tmp_path, monkeypatch, Classes(), decision, rows)
    assert [one.answer for one in found] == [[], ["vulnerable"], ["vulnerable"]]
    assert [one.is_finding for one in found] == [False, False, True]  # b is suppressed
    by_hand = [1 / (1 + math.exp(-math.log(p / (1 - p)) / 2)) for p in (0.2, 0.9, 0.3)]
    assert [one.probability for one in found] == pytest.approx(by_hand, rel=1e-9)
    assert [one.score for one in found] == [0.2, 0.9, 0.3]
    assert found[0].scores == {"safe": 0.8, "vulnerable": 0.2}
    assert tree.num_by_language == {"C": 3}


def test_of_many_classes_the_highest_is_the_answer_unless_it_says_nothing(tmp_path, monkeypatch):
    (tmp_path / "s.c").write_text(SOURCE)
    classes = Classes(("not vulnerable", "CWE-79", "CWE-89"))
    rows = [[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.5, 0.1]]
    _, found, _ = scored(tmp_path, monkeypatch, classes, Decision(), rows)
    assert [one.answer for one in found] == [[], ["CWE-89"], ["CWE-79"]]
    assert [one.score for one in found] == pytest.approx([0.5, 0.8, 0.6])
    assert found[1].scores == {"not vulnerable": 0.2, "CWE-79": 0.3, "CWE-89": 0.5}


def test_of_several_at_once_each_has_its_threshold(tmp_path, monkeypatch):
    (tmp_path / "s.c").write_text(SOURCE)
    classes = Classes(("CWE-79", "CWE-89"), sets=((0,), (1,), (0, 1)))
    rows = [[0.5, 0.5], [0.7, 0.5], [0.1, 0.2]]
    decision = Decision(thresholds=[0.6, 0.4])
    _, found, _ = scored(tmp_path, monkeypatch, classes, decision, rows)
    assert [one.answer for one in found] == [["CWE-89"], ["CWE-79", "CWE-89"], []]
    assert [one.score for one in found] == [0.5, 0.7, 0.2]


def test_a_dropped_function_is_counted_and_has_no_score(tmp_path, monkeypatch):
    (tmp_path / "s.c").write_text(SOURCE)
    rows = [[0.8, 0.2], None, [0.7, 0.3]]
    tree, found, _ = scored(tmp_path, monkeypatch, Classes(), Decision(), rows)
    assert [one.function for one in found] == ["a", "c"]
    (reason,) = tree.skipped
    assert reason.startswith("functions too long for the model")


def test_chunks_end_at_a_number_of_functions_or_of_characters(tmp_path, monkeypatch):
    for name in ("a.c", "b.c"):
        lines = (f"int f{n}(void) {{ return {n}; }}" for n in range(1300))
        (tmp_path / name).write_text("\n".join(lines))
    rows = [[0.5, 0.5]] * 2600
    _, found, sizes = scored(tmp_path, monkeypatch, Classes(), Decision(), rows)
    assert (len(found), sizes) == (2600, [1024, 1024, 552])
    monkeypatch.setattr(module, "_CHUNK_CHARACTERS", 10_000)
    _, again, small = scored(tmp_path, monkeypatch, Classes(), Decision(), rows)
    assert max(small) < 500
    assert [one.fingerprint for one in again] == [one.fingerprint for one in found]


@pytest.mark.parametrize(
    ("lines", "touched"),
    [
        ([(2, 2)], ["outer", "inner"]),
        ([(4, 4)], ["outer"]),
        ([(6, 6)], []),
        ([(7, 9)], ["later"]),
        ([(6, 5)], []),  # lines were deleted between the end of outer and the blank one
        ([(5, 4)], ["outer"]),  # within it
        ([], []),
    ],
)
def test_functions_are_read_whose_lines_were_touched(tmp_path, monkeypatch, lines, touched):
    text = "def outer():\n    def inner():\n        return 1\n\n    return inner\n"
    text += "\ndef later():\n    pass\n"
    (tmp_path / "s.py").write_text(text)
    (tmp_path / "other.py").write_text(text)
    _, found, _ = scored(
        tmp_path, monkeypatch, Classes(), Decision(), [[0.5, 0.5]] * 9, {"s.py": lines}
    )
    assert [one.function for one in found] == touched
