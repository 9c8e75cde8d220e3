"""The baselines answer what they say, learn what words can tell, and look at no test label."""

import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from trainer.errors import ModelError
from trainer.evaluation.functions.baselines import (
    ALWAYS_NEGATIVE,
    ALWAYS_POSITIVE,
    CODE_TOKEN,
    LEARNED,
    LENGTH,
    PRIOR,
    SHORTCUTS,
    TFIDF_LOGISTIC,
    Learned,
    constant_baselines,
    style_tokens,
    tfidf_logistic,
)
from trainer.evaluation.functions.metrics import choose_threshold, classification_metrics


def functions(seed, num=60):
    """Made-up C functions; the vulnerable ones lack the length check, three words that repeat."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num) % 2
    codes = []
    for label in labels:
        name = "".join(generator.choice(list("abcdefgh"), 4))
        check = "" if label else "if (len <= sizeof(buf)) "
        codes.append(f"int {name}(char *{name}_in, int len) {{ {check}memcpy(buf, in, len); }}")
    return codes, labels


def test_constant_baselines_answer_the_same_for_every_test_function():
    baselines = constant_baselines(0.25, 3)
    assert baselines[PRIOR].scores_N.tolist() == [0.25] * 3
    predicted = {name: (b.scores_N >= b.threshold).tolist() for name, b in baselines.items()}
    assert predicted[PRIOR] == predicted[ALWAYS_NEGATIVE] == [False] * 3
    assert predicted[ALWAYS_POSITIVE] == [True] * 3


def test_constant_baselines_rank_at_chance():
    labels = [1] * 123 + [0] * 129
    for baseline in constant_baselines(0.5, len(labels)).values():
        m = classification_metrics(baseline.scores_N, labels, baseline.threshold)
        assert m["roc_auc"] == 0.5
        assert m["pr_auc"] == pytest.approx(123 / 252)


def test_tokens_keep_identifiers_numbers_and_operators_whole():
    code = "if (p->len_1 <= 0x1F && !q[i++]) { x >>= 2.5f; } // é_1"
    spaced = "if ( p -> len_1 <= 0x1F && ! q [ i ++ ] ) { x >>= 2.5f ; } / / é_1"
    assert " ".join(re.findall(CODE_TOKEN, code)) == spaced


def test_tokens_lose_no_visible_character():
    code = "a<<=b...c::d|=~e?f:g#h\\n'\"@$`%&^*-+=,. 07.e _x\t€"
    assert "".join(re.findall(CODE_TOKEN, code)) == re.sub(r"\s", "", code)


def test_word_counts_find_a_missing_check_and_give_the_same_scores_again():
    train, valid, test = functions(0), functions(1, num=40), functions(2)
    scorer = tfidf_logistic(*train)
    scores = scorer(test[0])
    assert scores.dtype == np.float64
    assert roc_auc_score(test[1], scores) == 1.0  # the check is there or it is not
    assert (tfidf_logistic(*train)(test[0]) == scores).all()
    threshold, _ = choose_threshold(scorer(valid[0]), valid[1])
    assert classification_metrics(scores, test[1], threshold)["f1"] == 1.0


def test_case_tells_one_name_from_another():
    codes = ["x = FREE(p);", "x = free(p);"] * 10
    scores = tfidf_logistic(codes, [0, 1] * 10)(codes[:2])
    assert scores[0] < 0.5 < scores[1]


def test_labels_that_the_words_do_not_tell_are_ranked_at_chance():
    codes, labels = functions(0, num=200)
    test_codes, test_labels = functions(2, num=200)
    shuffle = np.random.default_rng(1).permutation
    scores = tfidf_logistic(codes, shuffle(labels))(test_codes)
    assert len(np.unique(scores)) > 1
    # Under chance the AUC of 100 against 100 has a standard error of 0.041; four of them.
    assert roc_auc_score(shuffle(test_labels), scores) == pytest.approx(0.5, abs=0.165)


def test_a_training_set_that_cannot_teach_is_named():
    with pytest.raises(ValueError, match=r"labels are \[1\]"):
        tfidf_logistic(["int f();", "int g();"], [1, 1])
    with pytest.raises(ValueError, match="2 training functions but 1 labels"):
        tfidf_logistic(["int f();", "int g();"], [1])


def test_style_is_comments_names_and_whitespace_and_nothing_that_the_code_does():
    code = 'int f(char *p) {\n    // Copy it\n    if (p[0] >= 10) strcpy(buf, "text");\n}'
    assert style_tokens(code) == [
        "#Copy",
        "#it",
        "f",
        "p",
        "p",
        "strcpy",
        "buf",
        *map(repr, ["\n    ", "\n    ", "\n"]),
    ]
    checked = code.replace(">= 10", "< 99").replace("if", "while").replace("text", "more")
    assert style_tokens(checked) == style_tokens(code)


def test_each_baseline_learns_only_what_it_reads():
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(200) % 2)
    by_length = [f"f{n}({'+ 1 ' * (30 if label else 10)})" for n, label in enumerate(labels)]
    by_comment = [f"f(); // {'unsafe' if label else 'checked'}" for label in labels]
    by_operator = [f"f(a {'<' if label else '<='} b);" for label in labels]
    found = {
        name: [
            roc_auc_score(labels, learn(codes, labels)(codes))
            for codes in (by_length, by_comment, by_operator)
        ]
        for name, learn in LEARNED.items()
    }
    assert found[LENGTH] == [1.0, 0.0 + found[LENGTH][1], 1.0]
    assert found[SHORTCUTS][1:] == [1.0, 0.5]
    assert found[TFIDF_LOGISTIC][1:] == [1.0, 1.0]


def test_what_baselines_learned_scores_the_same_after_it_was_saved(tmp_path):
    codes = [
        f"int f{n}(char *p) {{ /* note {n % 3} */ return p[{n}] + {n % 2}; }}" for n in range(40)
    ]
    labels = [n % 2 for n in range(40)]
    scorers = {name: (learn(codes, labels), 0.25) for name, learn in LEARNED.items()}
    folder, origin = tmp_path / "baselines", {"train": "a", "rule": 0.5}
    Learned(scorers, 40).save(folder, origin)
    read = Learned.load(folder, origin)
    assert read.num_functions == 40
    for name, (scorer, threshold) in scorers.items():
        assert read.scorers[name][1] == threshold
        new = [*codes[:7], "", "unknown words only", "int f(char *p)"]
        assert (read.scorers[name][0](new) == scorer(new)).all()
    with pytest.raises(ModelError, match="belongs to other data"):
        Learned.load(folder, origin | {"train": "b"})
    (folder / "learned.json").write_text('{"learned": {"length": {}}, "num_functions": 1}')
    with pytest.raises(ModelError, match=r"learned\.json"):
        Learned.load(folder, origin)
