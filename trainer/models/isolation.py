"""Proof, on this model and this machine, that packed functions do not see each other."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.batches.batch import Batch, collate
from data.text.tokenization import ExampleSet
from trainer.errors import ModelError

# Packed and alone run in kernels of other shapes, so they agree up to rounding: in fp32 it grows
# with depth, in 16 bit it is a few units in the last place of the hidden states.
_TOLERANCE = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.02}
# Changed neighbours keep shapes and kernels, so the difference is 0 unless a kernel mixes rows on
# purpose.
_NEIGHBOUR_TOLERANCE = 1e-5
_MOST_FUNCTIONS = 8

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class IsolationCheck:
    """Largest logit differences seen on one row, relative to max(1, largest logit).

    Attributes:
        packed_difference: Packed functions against each function alone.
        neighbour_difference: Last function, when all functions before it change.
        own_difference: Last function, when its own tokens are reversed: the size of a leak.
    """

    packed_difference: float
    neighbour_difference: float
    own_difference: float
    num_functions: int

    def __str__(self) -> str:
        """The line of the banner."""
        return (
            f"packing self-check: max |diff| = {self.packed_difference:.1e} over"
            f" {self.num_functions} examples, {self.neighbour_difference:.1e} when others change"
            f" ({self.own_difference:.1e} when its own tokens do)"
        )


def check_isolation(
    forward: Callable[[Batch], Tensor], examples: ExampleSet, seq_length: int, device: torch.device
) -> IsolationCheck:
    """Compare one packed row with its functions alone, and with other neighbours.

    `forward` takes a batch on the device to logits (S, C), in evaluation mode. Under ZeRO-3 all
    ranks call this together, on the same row.
    """
    examples = examples.subset(_row_of_functions(examples, seq_length))
    row = np.arange(len(examples))

    def logits(some: ExampleSet, *rows: Indices) -> Tensor:
        return forward(collate(some, list(rows)).to(device)).float()

    with torch.no_grad():
        packed = logits(examples, row)
        alone = torch.cat([logits(examples, row[i : i + 1]) for i in range(len(row))])
        neighbours_changed = logits(_reversed(examples, row[:-1]), row)
        own_changed = logits(_reversed(examples, row[-1:]), row)
    scale = max(1.0, float(alone.abs().max()))
    return IsolationCheck(
        packed_difference=float((packed - alone).abs().max()) / scale,
        neighbour_difference=float((neighbours_changed - packed)[-1].abs().max()) / scale,
        own_difference=float((own_changed - packed)[-1].abs().max()) / scale,
        num_functions=len(row),
    )


def refuse_leaking(check: IsolationCheck, precision: str) -> None:
    """Stop a packed run whose functions see each other.

    Raises:
        ModelError: A difference is above its tolerance, or the model ignores its input.
    """
    allowed = _TOLERANCE[precision]
    if check.packed_difference <= allowed and check.neighbour_difference <= _NEIGHBOUR_TOLERANCE:
        if check.own_difference > _NEIGHBOUR_TOLERANCE or check.num_functions < 2:
            return
        raise ModelError(
            f"{check}: the model's logits do not depend on its input; check its weights"
        )
    raise ModelError(
        f"{check}: allowed {allowed:.0e} and {_NEIGHBOUR_TOLERANCE:.0e}. Packed examples would see"
        " each other in this model: set data.packing=false, or another model.attention"
    )


def _row_of_functions(examples: ExampleSet, seq_length: int) -> Indices:
    """Short functions first, then the longest that fits: leaks would change it most."""
    by_length = np.argsort(examples.lengths, kind="stable")
    shortest = int(examples.lengths[by_length[0]])
    fitting = by_length[examples.lengths[by_length] <= seq_length - shortest]
    if len(fitting) < 2:
        return by_length[:1]
    longest = int(fitting[-1])
    others = fitting[: _MOST_FUNCTIONS - 1]
    room = seq_length - int(examples.lengths[longest])
    others = others[(others != longest) & (np.cumsum(examples.lengths[others]) <= room)]
    return np.append(others, longest)


def _reversed(examples: ExampleSet, places: Indices) -> ExampleSet:
    """The set with the tokens of some functions in reverse."""
    tokens = examples.tokens.copy()
    for place in places.tolist():
        first, last = examples.starts[place : place + 2]
        tokens[first:last] = tokens[first:last][::-1]
    return replace(examples, tokens=tokens)
