"""What a sweep shows and what it does not, in words."""

from math import comb, isclose

from trainer.sweep.findings import FEWEST, Comparison, Order

_SURE = 0.05
_FEW_SEEDS = 5


def answer_lines(comparison: Comparison) -> list[str]:
    """Whether the order of methods on the smallest model predicts that on the largest."""
    loss_name, order = comparison.loss_name, next(iter(comparison.orders), None)
    if order is None or order.model != next(iter(comparison.models)):
        return [
            f"Not answered: it takes {FEWEST} methods or more that have finished every seed on the"
            " smallest and on the largest size."
        ]
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
    """Yes, no or not shown, by the interval over seeds and the p value."""
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
        f"{num_seeds} seed{'s' * (num_seeds != 1)} a cell: [lowest, highest] is not a confidence"
        f" interval. Seeds change {_changed_by_seeds(comparison)}; the train losses of two seeds"
        " come from different rows.",
        "All cells are scored on the same test records. No interval here says what other records"
        " would give; report.csv has the interval of each cell over its records.",
        "Times depend on this machine and on what else ran on it. On a CPU, measured memory is that"
        " of the whole process, mostly libraries, so the planned memory is compared.",
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
            "**Cells were trained on different data** (their digests differ): do not compare them."
        )
    if len({result.num_steps for result in results}) > 1:
        lines.append("**Cells were trained for different numbers of steps.**")
    incomplete = len(results) < len(comparison.methods) * len(sizes) * num_seeds
    return lines + (["Cells are missing; means are over the finished ones."] * incomplete)


def _changed_by_seeds(comparison: Comparison) -> str:
    """What run.seed draws: also the base of a model without weights."""
    random = {result.model for result in comparison.results if result.is_base_random}
    if not random:
        return "the order of the data and new weights, not the base"
    names = ", ".join(model for model in comparison.models if model in random)
    return f"the order of the data, new weights and the base, which is random for {names}"


def _pairs(order: Order) -> str:
    """How many pairs of methods keep their order; it takes two seeds to tell them apart."""
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
        return "One seed cannot show how much of this is chance; run more seeds."
    if num_seeds >= _FEW_SEEDS:
        return f"The interval draws {num_seeds} seeds anew at each size, the same for all methods."
    num_distinct = comb(2 * num_seeds - 1, num_seeds) ** 2
    return (
        f"{num_seeds} seeds allow only {num_distinct} distinct resamples, so the interval is too"
        f" narrow to be trusted; {_FEW_SEEDS} seeds or more would say more."
    )
