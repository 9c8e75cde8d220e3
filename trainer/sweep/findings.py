"""Findings of a sweep: means over seeds, orders of methods, loss and metric, the Pareto front.

M methods, S seeds, N points.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import comb, isclose

import numpy as np

from trainer.evaluation.best_step import deciding
from trainer.evaluation.measures import Measure, measures_of
from trainer.evaluation.statistics import (
    FloatArray,
    grouped_interval,
    kendall,
    kendall_p,
    pareto_front,
    seed_interval,
    separated_pairs,
    spearman,
)
from trainer.sweep.paired import Paired
from trainer.sweep.results import Result

FEWEST = 3  # methods, or cells, that an order needs
_SURE = 0.05  # p value
_SMOOTHED = 0.1  # share of the logged steps in a running mean


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows.

    Attributes:
        measures: By name, the measures of the task that sweeps compare.
        paired: By model, the methods on the same resamples of the test records.
    """

    results: tuple[Result, ...]
    measures: Mapping[str, Measure]
    paired: Mapping[str, Paired] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Title of the first measure, which pictures and correlations use."""
        return next(iter(self.measures.values())).title

    @property
    def score(self) -> str:
        """Name of the measure that decides: what fronts and differences are about."""
        return deciding(self.results[0].measured, "auto")[0]

    @property
    def scored(self) -> dict[str, Measure]:
        """The deciding measure, then the others that sweeps compare."""
        every = measures_of(self.results[0].measured)
        return {self.score: every[self.score]} | dict(self.measures)

    def value(self, result: Result) -> float:
        """The deciding measure of a cell; NaN where it is undefined."""
        if self.score not in result.measures:
            return result.loss
        value = result.measures[self.score]
        return float("nan") if value is None else value

    def front(self, groups: Sequence["Group"], cost: Callable[[Result], float]) -> list["Group"]:
        """The groups that no other beats in both mean cost and mean score, cheapest first."""
        sign = -1 if self.scored[self.score].higher_is_better else 1
        cost_N, worse_N = (
            np.array([group.mean(value) for group in groups])
            for value in (cost, lambda cell: sign * self.value(cell))
        )
        return [groups[n] for n in pareto_front(cost_N, worse_N) if not np.isnan(worse_N[n])]

    @property
    def methods(self) -> list[str]:
        """In the order of the grid."""
        return list(dict.fromkeys(result.method for result in self.results))

    @property
    def swept_keys(self) -> list[str]:
        """Keys of which the methods have different values."""
        settings = (setting for method in self.methods for setting in method.split(" ")[1:])
        keys = (setting.partition("=") for setting in settings)
        return list(dict.fromkeys(key for key, equals, _ in keys if equals))

    @property
    def models(self) -> dict[str, int]:
        """Parameters of each base, smallest first."""
        sizes = {result.model: result.num_base for result in self.results}
        return dict(sorted(sizes.items(), key=lambda item: item[1]))

    @property
    def random_models(self) -> list[str]:
        """Models whose base is drawn from the seed too, as they have no weights."""
        random = {result.model for result in self.results if result.is_base_random}
        return [model for model in self.models if model in random]

    @property
    def seeds(self) -> list[int]:
        """Seeds of all cells."""
        return sorted({result.seed for result in self.results})

    @cached_property
    def groups(self) -> list["Group"]:
        """By model, smallest first, and method, in the order of the grid."""
        groups = []
        for model, method in product(self.models, self.methods):
            cells = tuple(r for r in self.results if (r.method, r.model) == (method, model))
            if cells:
                groups.append(Group(method, model, cells))
        return groups

    @cached_property
    def orders(self) -> list["Order"]:
        """Every model with enough methods against the largest, smallest first."""
        *smaller, largest = self.models
        found = (_order(self.results, model, largest) for model in smaller)
        return [order for order in found if order is not None]

    @property
    def order_of_smallest(self) -> "Order | None":
        """The smallest model against the largest; None with too few methods."""
        return next(
            (order for order in self.orders if order.model == next(iter(self.models))), None
        )

    @cached_property
    def relations(self) -> list["Relation"]:
        """Loss and metric over all cells and within each model that has enough cells."""
        parts = {"all": list(self.results)}
        parts |= {model: [r for r in self.results if r.model == model] for model in self.models}
        return [_relation(where, part) for where, part in parts.items() if len(part) >= FEWEST]

    @property
    def suites(self) -> list[str]:
        """Suites that a cell was measured on."""
        return sorted({name for result in self.results for name in result.suites})

    @property
    def loss_name(self) -> str:
        """The loss that methods are compared by."""
        has_test = all(result.test_loss is not None for result in self.results)
        return "test loss" if has_test else "train loss"

    @property
    def memory_name(self) -> str:
        """The memory that methods are compared by."""
        is_planned = any(result.is_on_cpu for result in self.results)
        return "planned peak memory" if is_planned else "peak memory"


@dataclass(frozen=True)
class Group:
    """The cells of a method on a model, one for each seed."""

    method: str
    model: str
    cells: tuple[Result, ...]

    def mean(self, value: Callable[[Result], float]) -> float:
        """Mean over seeds."""
        return float(np.mean([value(cell) for cell in self.cells]))

    def ends(self, value: Callable[[Result], float]) -> tuple[float, float]:
        """Lowest and highest of the seeds."""
        values = [value(cell) for cell in self.cells]
        return min(values), max(values)

    def mean_curve(self) -> tuple[list[int], list[float]]:
        """Steps that every seed logged and the mean of their running means."""
        curves = [dict(cell.curve) for cell in self.cells]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        losses = np.mean([[curve[step] for step in steps] for curve in curves], axis=0)
        width = max(1, round(_SMOOTHED * len(steps)))
        means = [float(losses[max(0, n - width + 1) : n + 1].mean()) for n in range(len(steps))]
        return steps, means


@dataclass(frozen=True)
class Order:
    """How well the order of methods by loss on one model predicts the order on a larger one.

    Attributes:
        model, other: The smaller and the larger model.
        methods: Methods with every seed on both, best first on the smaller model.
        places: Their places on the larger model, 1 is best.
        tau, rho: Kendall's and Spearman's correlation of the mean losses.
        tau_interval, rho_interval: Over seeds; None with one seed.
        p: How often a random order gives a tau as far from 0.
        num_pairs, num_apart, num_kept: Pairs of methods; pairs whose seeds do not overlap on either
            model; pairs of these in the same order on both.
        regret: On the larger model, loss of the smaller model's best method above the lowest loss.
    """

    model: str
    other: str
    methods: tuple[str, ...]
    places: tuple[int, ...]
    num_seeds: int
    tau: float | None
    tau_interval: tuple[float, float] | None
    rho: float | None
    rho_interval: tuple[float, float] | None
    p: float | None
    num_pairs: int
    num_apart: int
    num_kept: int
    regret: float

    @property
    def verdict(self) -> str:
        """Yes, no or not shown, by the interval over seeds and the p value."""
        if self.num_seeds == 1:
            return "Not shown: there is one seed."
        if self.tau_interval is None or self.p is None:
            return "Not shown."
        low, high = self.tau_interval
        if self.p > _SURE or low <= 0 <= high:
            return (
                "Not shown: with so few methods, or so much difference between seeds, this could be"
                " chance."
            )
        if high < 0:
            return "No: here it predicts the reverse."
        is_exact = isclose(self.tau or 0, 1)
        return "Yes, here it does." if is_exact else "Largely, here it does, but not in every pair."

    @property
    def num_distinct(self) -> int:
        """Distinct resamples of the seeds, drawn for both models apart."""
        return comb(2 * self.num_seeds - 1, self.num_seeds) ** 2


@dataclass(frozen=True)
class Relation:
    """Spearman's correlation of loss and metric over some cells.

    Attributes:
        where: A model, or "all".
        rho: None where one side does not vary.
        interval: Over methods x models, all seeds of one drawn together.
    """

    where: str
    num: int
    rho: float | None
    interval: tuple[float, float] | None


def _order(results: Sequence[Result], model: str, other: str) -> Order | None:
    """Compare two models; None if fewer than three methods have every seed on both."""
    losses = {(r.method, r.model, r.seed): r.loss for r in results}
    seeds = sorted({r.seed for r in results if r.model in (model, other)})
    methods = [
        method
        for method in dict.fromkeys(result.method for result in results)
        if all((method, one, seed) in losses for one in (model, other) for seed in seeds)
    ]
    if len(methods) < FEWEST:
        return None
    x_MS, y_MS = (
        np.array([[losses[method, one, seed] for seed in seeds] for method in methods])
        for one in (model, other)
    )
    x_M, y_M = x_MS.mean(axis=1), y_MS.mean(axis=1)
    by_loss = np.argsort(x_M, kind="stable")
    num_pairs, num_apart, num_kept = separated_pairs(x_MS, y_MS)
    return Order(
        model=model,
        other=other,
        methods=tuple(methods[m] for m in by_loss),
        places=tuple(int((y_M < y_M[m]).sum()) + 1 for m in by_loss),
        num_seeds=len(seeds),
        tau=kendall(x_M, y_M),
        tau_interval=seed_interval(x_MS, y_MS, kendall),
        rho=spearman(x_M, y_M),
        rho_interval=seed_interval(x_MS, y_MS, spearman),
        p=kendall_p(x_M, y_M),
        num_pairs=num_pairs,
        num_apart=num_apart,
        num_kept=num_kept,
        regret=float(y_M[by_loss[0]] - y_M.min()),
    )


def _relation(where: str, cells: Sequence[Result]) -> Relation:
    known = [cell for cell in cells if cell.metric is not None]
    loss_N: FloatArray = np.array([cell.loss for cell in known])
    metric_N: FloatArray = np.array([cell.metric for cell in known], dtype=np.float64)
    names = [f"{cell.method}/{cell.model}" for cell in known]
    if len(known) < FEWEST:
        return Relation(where, len(known), None, None)
    return Relation(
        where,
        len(known),
        spearman(loss_N, metric_N),
        grouped_interval(loss_N, metric_N, names, spearman),
    )
