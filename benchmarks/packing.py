"""Rows, CPU seconds, memory and order of our packing against others', in one process.

.venv/bin/python benchmarks/packing.py --data ARCHIVE.tar.gz --tokenizer TOKENIZER.json
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.lengths import (
    Ints,
    Packed,
    cpu_seconds,
    lag1,
    length_parser,
    lower_bound,
    peak_bytes,
    read_lengths,
    repeated_pairs,
    resampled,
)
from benchmarks.packers import PEERS, installed
from benchmarks.tables import Goal, print_goals, print_table
from data.batches.packing import Rows, pack

OURS, STREAMED = "focaltune", "focaltune, window 16,384"
CAPACITIES = (512, 2048, 4096)
SIZES = (100_000, 1_000_000, 10_000_000)
PEERS_UP_TO = 1_000_000
LARGE_PEERS = ("LLaMA-Factory knapsack",)  # those that take ten million in seconds


@dataclass(frozen=True)
class Result:
    """One packer on one array.

    Attributes:
        over: Rows / lower bound - 1.
        bytes_per_example: Peak while planning; None where not measured.
        repeated: Share of pairs that meet in the next epoch too; None where not measured.
    """

    name: str
    num_examples: int
    capacity: int
    over: float
    cpu_seconds: float
    bytes_per_example: float | None
    repeated: float | None
    lag1: float


def measure_ours(lengths: Ints, capacity: int, window: int | None) -> Result:
    """Median of five plans, above two million examples a single plan; planning only."""
    large = len(lengths) > 2_000_000

    def plan(epoch: int = 0) -> Rows:
        return pack(lengths, capacity, np.random.default_rng([0, epoch]), window)

    def packed(rows: Rows) -> Packed:
        return Packed(lengths[rows.examples], rows.starts, rows.examples)

    seconds, rows = cpu_seconds(plan, 1 if large else 5)
    return Result(
        STREAMED if window else OURS,
        len(lengths),
        capacity,
        len(rows) / lower_bound(lengths, capacity) - 1,
        seconds,
        # tracing hundreds of windows of a large array would take longer than all else
        None if large and window else peak_bytes(plan) / len(lengths),
        None if large else repeated_pairs(packed(rows), packed(plan(1))),
        lag1(packed(rows)),
    )


def measure_peer(name: str, lengths: Ints, capacity: int) -> Result:
    """One plan; memory and pairs only up to 100,000 examples, where tracing stays affordable."""
    packer = PEERS[name][0]
    packer(lengths[:100], capacity)  # imports and compilation are not planning
    seconds, packed = cpu_seconds(lambda: packer(lengths, capacity))
    small = len(lengths) <= 100_000
    return Result(
        name,
        len(lengths),
        capacity,
        (len(packed.starts) - 1) / lower_bound(lengths, capacity) - 1,
        seconds,
        # pyarrow and numba allocate where Python does not see it
        peak_bytes(lambda: packer(lengths, capacity)) / len(lengths)
        if small and PEERS[name][1] not in ("trl", "numba")
        else None,
        next_epoch_pairs(name, packer, lengths, capacity, packed) if small else None,
        lag1(packed),
    )


def next_epoch_pairs(
    name: str,
    packer: Callable[[Ints, int], Packed],
    lengths: Ints,
    capacity: int,
    packed: Packed,
) -> float:
    """Others pack once, before training; axolotl packs each epoch, in the sampler's new order."""
    if name != "axolotl multipack":
        return 1.0
    assert packed.ids is not None
    order = np.random.default_rng(1).permutation(len(lengths))
    again = packer(lengths[order], capacity)
    assert again.ids is not None
    return repeated_pairs(packed, Packed(again.lengths, again.starts, order[again.ids]))


def measure(real: Ints, sizes: tuple[int, ...], with_peers: bool) -> list[Result]:
    """Every packer on the real lengths (size 0) and on resampled ones."""
    results = []
    for size in sizes:
        for capacity in CAPACITIES:
            lengths = resampled(real, size, capacity) if size else real[real <= capacity]
            results.append(measure_ours(lengths, capacity, None))
            if size:
                results.append(measure_ours(lengths, capacity, 16_384))
            for name in PEERS if with_peers and installed_for(size, capacity) else ():
                if installed(name) and (size <= PEERS_UP_TO or name in LARGE_PEERS):
                    results.append(measure_peer(name, lengths, capacity))
    return results


def installed_for(size: int, capacity: int) -> bool:
    """Peers run at every capacity up to 100,000 examples and at 2,048 tokens above."""
    return size <= 100_000 or capacity == 2048


def goals(results: list[Result]) -> list[Goal]:
    """Goals and measured figures."""
    own = [result for result in results if result.name in (OURS, STREAMED)]
    large = [result for result in own if result.num_examples > 50_000]
    pairs = [r.repeated for r in large if r.repeated is not None]
    found = [
        Goal(
            "rows / lower bound, 100,000 examples and more", max(1 + r.over for r in large), 1.001
        ),
        Goal("pairs repeated between epochs, 100,000 and more", max(pairs), 0.05),
        Goal("|lag-1|, 100,000 and more", max(abs(r.lag1) for r in large), 0.1),
        Goal(
            "bytes an example, 90,000 and more",
            max(_bytes([r for r in large if r.num_examples > 90_000])),
            32,
        ),
    ]
    whole = {(r.name, _size(r), r.capacity): r.cpu_seconds for r in results}
    million, ten = (OURS, 1_000_000, 2048), (OURS, 10_000_000, 2048)
    for name, least in (
        ("LLaMA-Factory knapsack", 5), ("TRL bfd, one batch", 50), ("axolotl multipack", 50)
    ):  # fmt: skip
        peer = (name, 1_000_000, 2048)
        if peer in whole and million in whole:
            times = whole[peer] / whole[million]
            found.append(
                Goal(f"plan of 1,000,000 x 2,048: times faster than {name}", times, -least)
            )
    peers = [w for (name, *at), w in whole.items() if name in PEERS and at == [1_000_000, 2048]]
    if peers and million in whole:
        times = min(peers) / whole[million]
        found.append(Goal("plan of 1,000,000 x 2,048: times faster than the fastest", times, -3))
    if ten in whole:
        found.append(Goal("plan of 10,000,000 x 2,048, CPU s", whole[ten], 2))
    return found


def _bytes(results: list[Result]) -> list[float]:
    return [r.bytes_per_example for r in results if r.bytes_per_example is not None]


def _size(result: Result) -> int:
    """The nominal size: a few examples were dropped as too long."""
    return min(SIZES, key=lambda size: abs(size - result.num_examples))


def main(arguments: list[str]) -> int:
    """Measure, print, write."""
    given = length_parser(__doc__, "up to 100,000 examples").parse_args(arguments)
    real, source = read_lengths(given)
    missing = [f"{name} ({PEERS[name][1]})" for name in PEERS if not installed(name)]
    print(f"lengths: {source}; mean {real.mean():.0f}, median {np.median(real):.0f}")
    print(f"not installed, left out: {', '.join(missing) or 'none'}")
    results = measure(real, (0, *SIZES[: 1 if given.quick else 3]), with_peers=True)
    print_table(
        ["examples", "row", "packer", "", "over %", "CPU s", "bytes", "pairs %", "lag-1"],
        [
            [
                f"{r.num_examples:,}",
                f"{r.capacity:,}",
                r.name,
                PEERS[r.name][2] if r.name in PEERS else "",
                f"{100 * r.over:.3f}",
                f"{r.cpu_seconds:.3f}",
                "" if r.bytes_per_example is None else f"{r.bytes_per_example:.0f}",
                "" if r.repeated is None else f"{100 * r.repeated:.1f}",
                f"{r.lag1:+.2f}",
            ]
            for r in results
        ],
    )
    found = goals(results)
    print_goals(found)
    if given.json:
        whole = {"source": source, "results": [asdict(r) for r in results]}
        given.json.write_text(json.dumps(whole | {"goals": [asdict(g) for g in found]}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
