"""What a recipe's tuning section means for a method, before any model is known."""

from trainer.config.sections import TuningSection

BOTTLENECKS = ("adapter_h", "adapter_p", "parallel")
HEAD = "score"
_SIZES = {"ptuning": 30, "adapter_h": 256, "adapter_p": 256, "parallel": 256}  # Astraios


def adapter_size(tuning: TuningSection) -> int:
    """Inner width of bottleneck adapters, virtual tokens of P-Tuning; 0 for other methods."""
    usual = _SIZES.get(tuning.method, 0)
    return usual if tuning.adapter_size is None or not usual else tuning.adapter_size


def num_virtual_tokens(tuning: TuningSection) -> int:
    """Positions before every function that P-Tuning takes."""
    return adapter_size(tuning) if tuning.method == "ptuning" else 0
