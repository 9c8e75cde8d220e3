"""Run folders of finished classifiers with chosen scores."""

import numpy as np
import yaml

from trainer.config.recipe import load_run_config
from trainer.evaluation.decision import Decision
from trainer.evaluation.functions.predictions import Prediction
from trainer.evaluation.functions.report import write_function_report

NUM = 60
LABELS = np.arange(NUM) % 2


def recipe(base, folder, *overrides):
    """The folder of a run as far as its recipe."""
    config = load_run_config(base, [f"run.output_dir={folder}", *overrides])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_json()))
    return folder


def scores_of(seed, strength):
    noise = np.random.default_rng(seed).standard_normal(NUM)
    return np.clip(0.5 + strength * (LABELS - 0.5) + 0.2 * noise, 0, 1)


def rows_of(scores, threshold=0.5, labels=LABELS):
    """Pairs of a vulnerable and a safe function that share a commit."""
    return [
        Prediction(f"f{n}", f"a.c:{n}", int(label), float(score), int(score >= threshold),
                   f"commit{n // 2}", "CWE-787", "read", 9, digest=f"text {n}")
        for n, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]  # fmt: skip


def run(base, folder, scores, *overrides, threshold=0.5, labels=LABELS):
    """A finished run of two classes with chosen scores."""
    recipe(base, folder, *overrides)
    facts = {"steps": 8, "best_step": 4, "sha256_train": "ab", "precision": "fp32"}
    rows = rows_of(scores, threshold, labels)
    write_function_report(folder / "report", "test", rows, Decision(threshold), {}, facts)
    return folder
