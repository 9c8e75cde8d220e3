"""What a sweep shows and what it does not, in words."""

from collections.abc import Sequence
from math import comb, isclose

from trainer.sweep.findings import FEWEST, Comparison, Order, models_of
from trainer.sweep.results import Result

_SURE = 0.05
_FEW_SEEDS = 5


def answer_lines(comparison: Comparison) -> list[str]:
    """Whether the smallest model's order of methods predicts the largest's, and how surely."""
    loss_name = comparison.loss_name
    if not comparison.orders or comparison.orders[0].model != next(iter(comparison.models)):
        return [
            f"Not answered: it takes {FEWEST} methods or more that have finished every seed on the"
            " smallest and on the largest size."
        ]
    order = comparison.orders[0]
    if order.tau is None:
        return [f"Not answered: on one size all methods have the same {loss_name}."]
    best = order.methods[0]
    regret = (
        f"The best method on {order.model}, {best}, is also the best on {order.other}."
        if order.places[0] == 1
        else f"The best method on {order.model}, {best}, is number {order.places[0]} on"
        f" {order.other}: choosing by the small size costs {order.regret:.3f} nats of {loss_name}."
    )
    return [
        f"**{verdict(order)}** Kendall's tau of the orders by {loss_name} on {order.model} and on"
        f" {order.other} is {order.tau:+.2f}{_interval(order)} ({len(order.methods)} methods,"
        f" p = {order.p:.4f} against random orders).",
        f"{_pairs(order)} {regret}",
        _trust(order.num_seeds),
    ]


def verdict(order: Order) -> str:
    """Yes, no or not shown: by the interval over seeds and by chance among so few methods."""
    if order.num_seeds == 1:
        return "Not shown: there is one seed."
    if order.tau_interval is None or order.p is None:
        return "Not shown."
    low, high = order.tau_interval
    if order.p > _SURE or low <= 0 <= high:
        return (
            "Not shown: with so few methods, or so much difference between seeds, this could be"
            " chance."
        )
    if low > 0:
        exact = isclose(order.tau or 0, 1)
        return "Yes, here it does." if exact else "Largely, here it does, but not in every pair."
    return "No: here it predicts the reverse."


def limit_lines(comparison: Comparison) -> list[str]:
    """Conclusions that the numbers do not support."""
    results, num_seeds = comparison.results, len(comparison.seeds)
    sizes = list(comparison.models.values())
    lines = [
        f"Nothing beyond these {len(sizes)} sizes ({sizes[0]:,} to {sizes[-1]:,} parameters), this"
        " data, these steps and the one learning rate of each method: another rate can reorder"
        " methods more than size does.",
        f"{num_seeds} seed{'s' * (num_seeds != 1)} a cell: [lowest, highest] is not an interval of"
        f" confidence. Seeds change {_changed_by_seeds(results)}; the train losses of two seeds"
        " are of other rows.",
        "All cells are scored on the same test records. What other records would say is in no"
        " interval here; the interval of each cell over its records stands in report.csv.",
        "Time is of this machine and of whatever else ran on it. On a CPU, measured memory is that"
        " of the whole process, most of it libraries: there the planned memory is compared.",
    ]
    if "token_accuracy" in comparison.measures:
        lines.append(
            "Token accuracy comes from the same forward passes as the loss, so their correlation"
            " says little about generated answers or code that runs."
        )
    if comparison.loss_name == "train loss":
        lines.append("The task has no loss on test: methods are ordered by their training loss.")
    if len({result.data for result in results}) > 1:
        lines.append(
            "**Cells were trained on different data** (their digests differ): they do not compare."
        )
    if len({result.num_steps for result in results}) > 1:
        lines.append("**Cells were trained for different numbers of steps.**")
    incomplete = len(results) < len(comparison.methods) * len(sizes) * num_seeds
    return lines + (["Cells are missing; means are over those there are."] * incomplete)


def _changed_by_seeds(results: Sequence[Result]) -> str:
    """What run.seed draws: the base too, where a model has no weights."""
    drawn = models_of([result for result in results if result.is_base_random])
    if not drawn:
        return "the order of the data and new weights, not the base"
    names = ", ".join(drawn)
    return f"the order of the data, new weights and the base, which is random for {names}"


def _pairs(order: Order) -> str:
    """How many pairs of methods keep their order; seeds that could overlap take two at least."""
    if order.num_seeds == 1:
        return f"Of {order.num_pairs} pairs of methods, {order.num_kept} keep their order."
    return (
        f"Of {order.num_pairs} pairs of methods, {order.num_apart} are distinguished on both sizes"
        f" (the seeds of one lie wholly below those of the other); {order.num_kept} of these"
        f" {order.num_apart} keep their order."
    )


def _interval(order: Order) -> str:
    if order.tau_interval is None:
        return ""
    low, high = order.tau_interval
    return f" [{low:+.2f}, {high:+.2f}] over seeds"


def _trust(num_seeds: int) -> str:
    if num_seeds == 1:
        return "One seed: nothing is known about how much of this is chance; run more seeds."
    if num_seeds >= _FEW_SEEDS:
        return f"The interval draws {num_seeds} seeds anew at each size, the same for all methods."
    num_distinct = comb(2 * num_seeds - 1, num_seeds) ** 2
    return (
        f"{num_seeds} seeds allow only {num_distinct} distinct resamples, so the interval is too"
        f" narrow to be trusted; {_FEW_SEEDS} seeds or more would say more."
    )
