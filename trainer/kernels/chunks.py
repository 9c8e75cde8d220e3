"""How many rows of logits are in memory at once.

T tokens, D hidden, V vocabulary.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# A GEMM tile of a GPU; a CPU's kernels want a multiple of 16 rows.
_TILE_ROWS, _TILE_COLUMNS, _CPU_ROWS = 128, 256, 16

# A GPU: one wave of the gradient's GEMM at D = 2048, V = 49152 is 594 MiB. A CPU: 80 rows at
# V = 49152, where time and peak are both below torch's, TRL's and DeepSpeed's; 128 rows are 10%
# faster and take 8 MiB more (benchmarks/RESULTS.md).
BUDGET_BYTES = {"cuda": 640 << 20, "cpu": 16 << 20}


def plan_chunk(
    num_tokens: int,
    hidden_size: int,
    vocab_size: int,
    dtype: "torch.dtype",
    budget_bytes: int,
    num_sms: int = 0,
) -> int:
    """Rows of a chunk; only the last chunk is shorter.

    A chunk keeps the budget, but has at least one tile of rows. Above one wave it is a whole number
    of waves: a wave is the rows whose T x D gradient has a tile for every multiprocessor.

    Args:
        num_tokens, hidden_size, vocab_size: T, D and V.
        dtype: Of the hidden states; a 16-bit one needs fp32 logits and a 16-bit gradient.
        budget_bytes: For logits and their gradient.
        num_sms: Multiprocessors of the GPU; 0 on a CPU, which knows no waves.
    """
    row_bytes = vocab_size * (4 + dtype.itemsize if dtype.itemsize < 4 else dtype.itemsize)
    tile = _TILE_ROWS if num_sms else _CPU_ROWS
    rows = max(1, budget_bytes // row_bytes // tile) * tile
    wave_rows = -(-num_sms * _TILE_COLUMNS // hidden_size) * tile
    if 0 < wave_rows < rows:
        rows = rows // wave_rows * wave_rows
    num_chunks = max(1, -(-num_tokens // rows))
    even_rows = -(-num_tokens // num_chunks)
    return max(1, min(num_tokens, -(-even_rows // tile) * tile))


def device_chunk(
    num_tokens: int,
    hidden_size: int,
    vocab_size: int,
    dtype: "torch.dtype",
    device: "torch.device",
) -> int:
    """`plan_chunk` with the budget and the multiprocessors of a device."""
    import torch  # here, because the planner reads BUDGET_BYTES without it

    num_sms = 0
    if device.type == "cuda":
        num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    budget = BUDGET_BYTES[device.type]
    return plan_chunk(num_tokens, hidden_size, vocab_size, dtype, budget, num_sms)
