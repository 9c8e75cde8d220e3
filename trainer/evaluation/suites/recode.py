"""ReCode (arXiv 2212.10264): does a model still solve HumanEval where its prompts are perturbed.

A transformation has up to five perturbations (seeds) of each problem, a category several
transformations; what counts is the worst case over them.

Shapes: R resamples, N problems.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.config import DataConfig
from data.errors import DataError, parsing
from data.readers.archives import opened
from data.readers.reading import ReadFacts, Reading
from trainer.evaluation.resampling import FloatArray, Multiplicities
from trainer.evaluation.suites.programs import LANGUAGES
from trainer.evaluation.suites.scoring import pass_at_k, with_intervals
from trainer.evaluation.suites.suite import Item, Judged, Result

CATEGORIES = {
    "format": "format", "syntax": "natgen", "function": "func_name", "docstring": "nlaugmenter",
}  # fmt: skip
NOMINAL = "nominal"
_PERTURBED = re.compile(r"perturbed_finalized/humaneval/full/(\w+)/humaneval_(\w+)_s(\d)\.jsonl$")
_REMEDY = "give the release's dataset-release folder as a tar (docs/suites.md)"
_MOST_BYTES = 64 << 20  # of a member; those of the release have 0.3 MB
_KS = (1, 10)


def recode_items(*categories: str) -> Callable[[Path], list[Item]]:
    """Reads the release's archive: perturbed problems by category, file and problem, then nominal.

    The released generations of the study stand in this order, without the nominal ones.
    """

    def read(data: Path) -> list[Item]:
        paths = [data] if data.is_file() else sorted(data.rglob("*recode*.tar*"))
        if len(paths) != 1:
            raise DataError(f"--data {data}: {len(paths)} archives of ReCode found; {_REMEDY}")
        rows = _rows(paths[0])
        try:
            helpers = {row["task_id"]: row["prompt"] for row in rows[NOMINAL, "HumanEval", ""]}
            partial = rows[NOMINAL, "humaneval_partial", ""]
        except KeyError as error:
            raise DataError(f"{paths[0]}: {error} is missing; {_REMEDY}") from error
        found = []
        for category in categories:
            inner = CATEGORIES[category]
            is_partial = inner in ("format", "natgen")  # prompts with a half of the solution
            nominal = partial if is_partial else rows[NOMINAL, "HumanEval", ""]
            keys = sorted(key for key in rows if key[0] == inner)
            found += [(category, *key[1:], row) for key in keys for row in rows[key]]
            found += [(category, NOMINAL, "", row) for row in nominal]
        found.sort(key=lambda one: one[1] == NOMINAL)  # stable
        items = []
        for place, (category, name, seed, row) in enumerate(found):
            more = {"category": category, "transformation": name, "seed": seed}
            more["helpers"] = helpers[row["task_id"]]
            name = f"{category}/{name}{seed and f'_s{seed}'}/{row['task_id']}"
            is_nominal = more["transformation"] == NOMINAL
            items.append(Item(name, {**row, **more}, place, is_extra=is_nominal))
        return items

    return read


def _rows(path: Path) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Rows of each file of the archive: by category, transformation and seed."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with path.open("rb") as raw:
        _, members = opened(raw, Reading(path.name, DataConfig(), ReadFacts()))
        for member in members or ():
            name = Path(member.name)
            match = _PERTURBED.search(member.name)
            if not match and (name.parent.name != NOMINAL or name.suffix != ".jsonl"):
                continue
            key = (match[1], match[2], match[3]) if match else (NOMINAL, name.stem, "")
            with parsing(f"{path}::{member.name} cannot be read", DataError, _REMEDY):
                text = member.open().read(_MOST_BYTES).decode("utf-8")
                rows = [json.loads(line) for line in text.splitlines() if line.strip()]
                if not all({"task_id", "prompt", "test", "entry_point"} <= set(r) for r in rows):
                    raise ValueError("a row has no task_id, prompt, test or entry_point")
            found[key] = rows
    return found


def judge_perturbed(item: Item, outputs: Sequence[str]) -> list[Judged]:
    """As a program of HumanEval; what stands beside the function is that of the nominal prompt."""
    row = {**item.row, "prompt": item.row["helpers"]}
    return LANGUAGES["python"].judge(replace(item, row=row), outputs)


Passed = Mapping[str, Mapping[str, Sequence[bool]]]
"""Problem -> perturbation -> whether each sample passes."""


def robust_pass(passed: Passed, k: int) -> FloatArray:
    """RP_s@k of each problem: k samples, one of which passes under every perturbation (eq. 1)."""
    counts = [np.all([*samples.values()], axis=0) for samples in passed.values()]
    return np.array([pass_at_k(len(both), int(both.sum()), k) for both in counts])


def robust_change(passed: Passed, nominal: Mapping[str, Sequence[bool]], k: int) -> FloatArray:
    """RC_s@k of each problem: a sample that passes and is broken, or fails and is repaired.

    By the paper's robust relative (eq. 3): the worst case in both directions. A problem can have
    both among k samples, so above k = 1 it can reach 2.
    """
    found = []
    for problem, samples in passed.items():
        before, after = np.array(nominal[problem]), np.array([*samples.values()])
        broken, repaired = before & ~after.all(axis=0), ~before & after.any(axis=0)
        both = [pass_at_k(len(before), int(one.sum()), k) for one in (broken, repaired)]
        found.append(sum(both))
    return np.array(found)


def recode_summary(results: Sequence[Result]) -> dict[str, Any]:
    """RP@k, RC@k and the nominal pass@k of each category in percent, and of each transformation.

    RC needs the nominal problems. Problems with an output that could not be judged are left out.
    """
    counts = Counter(one.verdict for _, outputs in results for one in outputs)
    passed: dict[tuple[str, str], dict[str, dict[str, list[bool]]]] = defaultdict(dict)
    unsound = set()
    for item, outputs in results:
        row = item.row
        problem, name = str(row["task_id"]), str(row["transformation"])
        if {"error", "not measured"} & {one.verdict for one in outputs}:
            unsound.add((row["category"], problem))
        samples = [one.verdict == "pass" for one in outputs]
        for part in {name, "" if name != NOMINAL else NOMINAL}:
            places = passed[row["category"], part].setdefault(problem, {})
            places[f"{name} {row['seed']}"] = samples
    measures: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for category in dict.fromkeys(category for category, _ in passed):
        parts = {
            name: {p: s for p, s in of.items() if (category, p) not in unsound}
            for (of_category, name), of in passed.items()
            if of_category == category
        }
        whole = _measures(parts.get("", {}), parts.get(NOMINAL, {}))
        if whole:
            measures |= _with_intervals(whole, category)
        details[category] = {
            name: {key: 100 * float(values.mean()) for key, values in one.items()}
            for name in sorted(set(parts) - {"", NOMINAL})
            if (one := _measures(parts[name], parts.get(NOMINAL, {})))
        }
    return {
        "measures": measures,
        "counts": dict(sorted(counts.items())),
        "left_out": len(unsound),
        "transformations": details,
    }


def _measures(passed: Passed, nominal: Passed) -> dict[str, FloatArray]:
    """Measure -> its value for each problem."""
    if not passed:
        return {}
    num = min(len(samples) for of in passed.values() for samples in of.values())
    found = {}
    for k in (k for k in _KS if k <= num):
        found[f"RP@{k}"] = robust_pass(passed, k)
        if passed.keys() <= nominal.keys():
            before = {problem: next(iter(of.values())) for problem, of in nominal.items()}
            found[f"RC@{k}"] = robust_change(passed, before, k)
            chances = [pass_at_k(len(before[p]), sum(before[p]), k) for p in passed]
            found[f"pass@{k}"] = np.array(chances)
    return found


def _with_intervals(values: Mapping[str, FloatArray], category: str) -> dict[str, Any]:
    num = len(next(iter(values.values())))

    def measured(weights_RN: Multiplicities) -> dict[str, FloatArray]:
        sums_R = weights_RN.sum(axis=1)
        return {f"{n} {category}": 100 * (weights_RN @ v_N) / sums_R for n, v_N in values.items()}

    return with_intervals(measured, num)
