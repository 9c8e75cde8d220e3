"""Every method on the same resamples of the test records, and against LoRA.

The runs of a method on a model are its seeds. A value is the mean of a measure over them, in each
resample too, so that an interval covers the test records and a difference is paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.evaluation.comparison.compare import drawn_together
from trainer.evaluation.comparison.runs import Predictor, paired, read_run
from trainer.evaluation.measures import Measure, measured, with_interval
from trainer.sweep.grid import Cell

Interval = tuple[float, float]


@dataclass(frozen=True)
class Paired:
    """What the resamples of one model's test records say.

    Attributes:
        reference: The method that the others are compared with.
        intervals: Of (method, measure), over the method's own seeds.
        differences: Of (method, measure): method minus reference and its interval, over the seeds
            that both have.
        why_not: Why there are none.
    """

    reference: str
    intervals: Mapping[tuple[str, str], Interval] = field(default_factory=dict)
    differences: Mapping[tuple[str, str], tuple[float, Interval]] = field(default_factory=dict)
    why_not: str = ""

    def difference(self, method: str, name: str, measure: Measure) -> str:
        """Value and interval for people; "-" where it is not known."""
        if (method, name) not in self.differences:
            return "-"
        return with_interval(*self.differences[method, name], f"+.{measure.digits}f")

    def verdict(self, method: str, name: str, measure: Measure) -> str:
        """The difference in words."""
        found = self.differences.get((method, name))
        return measure.verdict(found[1]) if found else "not compared with"


def reference_of(methods: Sequence[str]) -> str:
    """LoRA, the first of several settings of it, or else the first method."""
    return next((one for one in methods if one.split(" ")[0] == "lora"), methods[0])


def pair_methods(cells: Sequence[Cell], names: Sequence[str]) -> dict[str, Paired]:
    """By model, from the predictions of its finished cells.

    Args:
        names: Measures that are compared; those without resamples are left out.
    """
    models: dict[str, list[Cell]] = {}
    for cell in cells:
        models.setdefault(cell.model, []).append(cell)
    found = {}
    for model, own in models.items():
        reference = reference_of([cell.method for cell in own])
        try:
            found[model] = _paired(own, reference, names)
        except ValueError as error:  # a cell without readable predictions, or on other records
            found[model] = Paired(reference, why_not=str(error))
    return found


def _paired(cells: Sequence[Cell], reference: str, names: Sequence[str]) -> Paired:
    first = read_run(cells[0].config.output_dir, cells[0].name, "test")
    predictors: dict[str, Predictor] = {cells[0].name: first.predictor}
    for cell in cells[1:]:  # of their rows only those of the first are kept
        _, run = paired([first, read_run(cell.config.output_dir, cell.name, "test")])
        predictors[cell.name] = run.predictor
    drawn = drawn_together(first, predictors)
    resampled = [name for name in names if (cells[0].name, name) in drawn.values]
    if not resampled:
        return Paired(reference, why_not="the test records are too few, or of one class or group")
    values = {name: measured(first.of, one) for name, one in predictors.items()}
    of: dict[str, dict[int, str]] = {}
    for cell in cells:
        of.setdefault(cell.method, {})[cell.seed] = cell.name
    means = drawn.averaged({method: list(own.values()) for method, own in of.items()})
    intervals: dict[tuple[str, str], Interval] = {}
    differences: dict[tuple[str, str], tuple[float, Interval]] = {}
    for method, own in of.items():
        found = means.intervals(method)
        intervals |= {(method, name): _ends(found[name]) for name in resampled if name in found}
        seeds = own.keys() & of[reference].keys()
        if method == reference or not seeds:
            continue
        sides = {m: [of[m][seed] for seed in sorted(seeds)] for m in (method, reference)}
        both = drawn.averaged(sides)
        for name in resampled:
            one, other = (np.mean([values[run][name] for run in sides[m]]) for m in sides)
            interval = _ends(both.difference(name, method, reference))
            differences[method, name] = float(one - other), interval
    return Paired(reference, intervals, differences)


def _ends(interval: Sequence[float]) -> Interval:
    low, high = interval
    return low, high
