"""What the cells of a grid say together: means over seeds, orders of methods, the Pareto front.

M methods, S seeds, N points.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.measures import Measure, swept_measures
from trainer.sweep.results import Result
from trainer.sweep.statistics import (
    FloatArray,
    grouped_interval,
    kendall,
    kendall_p,
    pareto_front,
    seed_interval,
    separated_pairs,
    spearman,
)

FEWEST = 3  # methods, or cells, of which an order says anything


@dataclass(frozen=True)
class Comparison:
    """Everything a report is made of.

    Attributes:
        results: Of the finished cells.
        groups: By model, smallest first, and method.
        orders: Every model against the largest, smallest first.
        relations: Of loss and metric, over all cells and within each model.
        measures: What the task is measured by, by name.
        loss_name: What methods are compared by.
        memory_name: What their memory is.
    """

    results: tuple[Result, ...]
    groups: tuple["Group", ...]
    orders: tuple["Order", ...]
    relations: tuple["Relation", ...]
    measures: Mapping[str, Measure]
    loss_name: str
    memory_name: str

    @property
    def metric(self) -> str:
        """The first measure, which pictures and correlations use, for people."""
        return next(iter(self.measures.values())).title

    @property
    def methods(self) -> list[str]:
        """In the order of the grid."""
        return methods_of(self.results)

    @property
    def models(self) -> dict[str, int]:
        """Parameters of each base, smallest first."""
        return models_of(self.results)

    @property
    def seeds(self) -> list[int]:
        """Of any cell."""
        return sorted({result.seed for result in self.results})


@dataclass(frozen=True)
class Group:
    """The cells of a method on a model, a seed each."""

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


@dataclass(frozen=True)
class Order:
    """How the order of methods by loss on one model resembles that on another.

    Attributes:
        model, other: The smaller one and the larger one.
        methods: That have every seed on both, best first on the smaller one.
        places: Their places on the larger one, 1 is best.
        num_seeds: S.
        tau, rho: Kendall's and Spearman's correlation of the mean losses.
        tau_interval, rho_interval: Over seeds; None of one seed.
        p: Two-sided, of tau: how often a random order does as well.
        num_pairs, num_apart, num_kept: Pairs of methods; those whose seeds do not overlap on either
            model; of these, those in the same order on both.
        regret: Loss on the larger one of the smaller one's best method, above the lowest there.
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


@dataclass(frozen=True)
class Relation:
    """Spearman's correlation of loss and metric over some cells.

    Attributes:
        where: A model, or all.
        num: Cells.
        rho: None where one side does not vary.
        interval: Over methods x models, whose seeds are drawn together.
    """

    where: str
    num: int
    rho: float | None
    interval: tuple[float, float] | None


def compare(results: Sequence[Result], task: str) -> Comparison:
    """Everything that a report says about finished cells, at least one, of a task."""
    has_test = all(result.test_loss is not None for result in results)
    is_planned = any(result.is_on_cpu for result in results)
    return Comparison(
        results=tuple(results),
        groups=tuple(grouped(results)),
        orders=tuple(orders(results)),
        relations=tuple(relations(results)),
        measures=swept_measures(task),
        loss_name="test loss" if has_test else "train loss",
        memory_name="planned peak memory" if is_planned else "peak memory",
    )


def grouped(results: Sequence[Result]) -> list[Group]:
    """By model, smallest first, and method, in the order of the grid."""
    methods, models = methods_of(results), models_of(results)
    groups = []
    for model in models:
        for method in methods:
            cells = tuple(r for r in results if (r.method, r.model) == (method, model))
            if cells:
                groups.append(Group(method, model, cells))
    return groups


def methods_of(results: Sequence[Result]) -> list[str]:
    """In the order of the grid."""
    return list(dict.fromkeys(result.method for result in results))


def models_of(results: Sequence[Result]) -> dict[str, int]:
    """Parameters of each base, smallest first."""
    return dict(sorted({r.model: r.num_base for r in results}.items(), key=lambda item: item[1]))


def orders(results: Sequence[Result]) -> list[Order]:
    """Every model against the largest, smallest first; without those that share too few methods."""
    *smaller, largest = models_of(results)
    found = (order_between(results, model, largest) for model in smaller)
    return [order for order in found if order is not None]


def order_between(results: Sequence[Result], model: str, other: str) -> Order | None:
    """Compare two models; None where fewer than three methods have every seed on both."""
    losses = {(r.method, r.model, r.seed): r.loss for r in results}
    seeds = sorted({r.seed for r in results if r.model in (model, other)})
    methods = [
        method
        for method in methods_of(results)
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


def relations(results: Sequence[Result]) -> list[Relation]:
    """Loss against metric over all cells and within each model, where there are enough cells."""
    places = {"all": results} | {
        model: [r for r in results if r.model == model] for model in models_of(results)
    }
    return [_relation(where, cells) for where, cells in places.items() if len(cells) >= FEWEST]


def front_of(groups: Sequence[Group], cost: Callable[[Result], float]) -> list[Group]:
    """The groups that no other beats in both mean cost and mean loss, cheapest first."""
    cost_N, loss_N = (
        np.array([group.mean(value) for group in groups])
        for value in (cost, lambda cell: cell.loss)
    )
    return [groups[n] for n in pareto_front(cost_N, loss_N)]


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
