"""The goals of the loss, compared with the rows of one run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
PEAK_FLOPS = 790e12  # bf16 GEMM as measured on an H200
PEERS = ("torch linear_cross_entropy + f(nll)", "TRL chunked + f(nll)", "DeepSpeed tiled")
LIGER = "Liger, plain cross-entropy"
NAIVE = "naive eager"


@dataclass(frozen=True)
class Goal:
    """A figure with its limit.

    Attributes:
        name: Name of the goal.
        wanted: The limit.
        found: The measured figure; None if a contender is absent.
        is_upper: Whether the limit is an upper one.
        contender, hidden_size: The row that the goal is about; the table shows the goal there.
    """

    name: str
    wanted: float
    found: float | None
    is_upper: bool
    contender: str
    hidden_size: int

    @property
    def verdict(self) -> str:
        """The last column."""
        if self.found is None:
            return "not measured"
        is_met = self.found <= self.wanted if self.is_upper else self.found >= self.wanted
        return "met" if is_met else "not met"

    def is_about(self, row: Row) -> bool:
        """Whether the goal belongs beside a row: the dense case with gamma 2."""
        same = row["contender"] == self.contender and row["hidden_size"] == self.hidden_size
        return bool(same and row["gamma"] == 2 and not row["ignored"])

    def cells(self) -> list[str]:
        """A line of the table of goals."""
        found = "-" if self.found is None else f"{self.found:.3g}"
        sign = "<=" if self.is_upper else ">="
        return [
            f"{self.name}, {self.contender}, D {self.hidden_size}", f"{sign} {self.wanted:.3g}",
            found, self.verdict,
        ]  # fmt: skip


def cpu_goals(rows: list[Row]) -> list[Goal]:
    """At most 1/25 of naive's peak and 0.70 of its time; ahead of every peer in both."""
    goals = []
    for size in _sizes(rows):
        mine = _find(rows, "ours, torch", size)
        against = {name: _find(rows, name, size) for name in (NAIVE, *PEERS, LIGER)}
        for name, peer in against.items():
            limits = (1 / 25, 0.70) if name == NAIVE else (1.0, 1.0)
            for key, what, limit in zip(
                ("peak_bytes", "seconds"), ("our peak / theirs", "our time / theirs"), limits,
                strict=True,
            ):  # fmt: skip
                goals.append(Goal(what, limit, _ratio(mine, peer, key), True, name, size))
    return goals


def gpu_goals(rows: list[Row]) -> list[Goal]:
    """The table for one H200; see benchmarks/RESULTS.md."""
    goals = []
    for size in _sizes(rows):
        mine, is_wide = _find(rows, "ours, triton", size), size > 4096
        speeds = {NAIVE: (1.25, 1.10), PEERS[0]: (1.2, 1.3), PEERS[1]: (1.2, 1.3)}
        speeds |= {PEERS[2]: (1.25, 1.10), LIGER: (1.0, 0.97)}
        for name, limits in speeds.items():
            found = _ratio(_find(rows, name, size), mine, "seconds")
            goals.append(Goal("speed-up", limits[is_wide], found, False, name, size))

        def add(
            what: str, limit: float, found: float | None, is_upper: bool = True, size: int = size
        ) -> None:
            goals.append(Goal(what, limit, found, is_upper, "ours, triton", size))

        peak = _ratio(mine, _find(rows, NAIVE, size), "peak_bytes")
        plain = _find(rows, "ours, triton", size, lambda row: row["gamma"] == 0)
        sparse = _find(rows, "ours, triton", size, lambda row: row["ignored"] > 0)
        add("peak / naive", 1 / 8, peak)
        add("time of gamma 2 / gamma 0", 1.02, _ratio(mine, plain, "seconds"))
        add("time with 70% ignored / dense", 0.36, _ratio(sparse, mine, "seconds"))
        flops = None if mine is None else 4 * mine["num_tokens"] * size * mine["vocab_size"]
        share = None if mine is None or flops is None else flops / mine["seconds"] / PEAK_FLOPS
        add("share of peak", 0.75 if is_wide else 0.58, share, is_upper=False)
        add("error of dX", 3e-3, None if mine is None else mine["error"])
    return goals


def _sizes(rows: list[Row]) -> list[int]:
    return sorted({row["hidden_size"] for row in rows if "hidden_size" in row})


def _find(
    rows: list[Row],
    name: str,
    size: int,
    wanted: Callable[[Row], bool] = lambda row: row["gamma"] == 2 and not row["ignored"],
) -> Row | None:
    for row in rows:
        if row["contender"] == name and row.get("hidden_size") == size and wanted(row):
            return row
    return None


def _ratio(above: Row | None, below: Row | None, key: str) -> float | None:
    return None if above is None or below is None else above[key] / below[key]
