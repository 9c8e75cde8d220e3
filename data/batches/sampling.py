"""Which examples an epoch or an audit takes, if it does not simply take all."""

import numpy as np
import numpy.typing as npt


def at_most(limit: int, num: int) -> npt.NDArray[np.int64]:
    """All of `num` places, or always the same `limit` of them, drawn at random; ascending."""
    if num <= limit:
        return np.arange(num)
    return np.sort(np.random.default_rng(0).choice(num, size=limit, replace=False))


def weighted(
    times_N: npt.NDArray[np.float64], record_E: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Examples of an epoch that takes record n `times_N[n]` times.

    Of a weight that is not whole, the fraction is drawn among the records that have it, anew in
    every epoch; their number is always the same. The windows of a record stay together.

    Args:
        times_N: How often, by record.
        record_E: Record of each example.
        rng: Draws.

    Returns:
        Indices of examples, ascending.
    """
    count_N = np.floor(times_N).astype(np.int64)
    for weight in np.unique(times_N):
        own = np.intersect1d(np.flatnonzero(times_N == weight), record_E)  # dropped ones have none
        num_more = round(float(weight % 1) * len(own))
        count_N[rng.choice(own, num_more, replace=False)] += 1
    return np.repeat(np.arange(len(record_E)), count_N[record_E])


def balanced(
    label_E: npt.NDArray[np.integer], record_E: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Examples of an epoch in which all classes have as many functions as the most frequent one.

    No function is left out. Functions of a rarer class come equally often, a random few of them
    once more; these change in every epoch. The windows of a function stay together.

    Args:
        label_E: Class of each example.
        record_E: Function of each example.

    Returns:
        Indices of examples, ascending.
    """
    functions, first_E = np.unique(record_E, return_index=True)
    label_F = label_E[first_E]
    most = np.bincount(label_F).max()
    times = np.zeros(int(record_E.max()) + 1, dtype=np.int64)
    for label in np.unique(label_F):
        of_class = functions[label_F == label]
        whole, rest = divmod(most, len(of_class))
        times[of_class] = whole
        times[rng.choice(of_class, rest, replace=False)] += 1
    return np.repeat(np.arange(len(record_E)), times[record_E])
