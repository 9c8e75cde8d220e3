"""A recipe on a machine with every `auto` settled: what planner, run and banner read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.architectures.adapters import num_adapter_parameters, num_head_parameters
from trainer.architectures.shapes import ModelShape
from trainer.config.machines import Machine
from trainer.config.methods import num_virtual_tokens
from trainer.config.preset import Preset
from trainer.config.sections import RunConfig, TuningSection

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_TABLES = ("wte", "embed_tokens", "lm_head")  # modules_to_save that the planner can size


@dataclass(frozen=True)
class Resolved:
    """A recipe on a machine, resolved once by `resolve`.

    Attributes:
        written: The recipe as its author wrote it: what a run folder keeps, and a resume compares.
        config: The recipe with every `auto` of `reasons` settled.
        reasons: Why, by key, in the order of the banner.
        faults: Why it cannot run there, with exit codes, in the order they are found.
        accumulation: Micro-batches of a rank in a step; None, taken as several, before the data is
            known.
        record_tokens: Tokens of the record that a token is in, on average, where attention gets
            records; None: it gets rows of data.seq_length.
        num_counted: Parameters of adapters that PEFT alone can size; None: a formula has them.
    """

    written: RunConfig
    config: RunConfig
    reasons: Mapping[str, str]
    preset: Preset
    shape: ModelShape
    machine: Machine
    faults: tuple[ValueError, ...] = ()
    accumulation: int | None = None
    record_tokens: float | None = None
    num_counted: int | None = None

    def choice(self, key: str) -> str:
        """A settled key and its reason, e.g. "bf16 (GPU of sm80 or newer)"."""
        return f"{self.value(key)} ({self.reasons[key]})"

    def value(self, key: str) -> Any:
        """A settled key."""
        section, name = key.split(".")
        return getattr(getattr(self.config, section), name)

    def settled(self, section: str, key: str, value: Any, reason: str) -> "Resolved":
        """The same choices but for one, and its reason."""
        reasons = {**self.reasons, f"{section}.{key}": reason}
        return replace(self.changed(section, **{key: value}), reasons=reasons)

    def changed(self, section: str, **values: Any) -> "Resolved":
        """The same choices with keys of one section changed."""
        return replace(self, config=self.config.changed(section, **values))

    @property
    def tuning(self) -> TuningSection:
        """The tuning section."""
        return self.config.tuning

    @property
    def base_bytes(self) -> int:
        """Bytes of an activation, and of a frozen weight that is not quantised."""
        return BYTES[self.config.base_dtype]

    @property
    def train_bytes(self) -> int:
        """Bytes of a trained weight."""
        return BYTES[self.config.engine.precision]

    @property
    def on_gpu(self) -> bool:
        """Whether the machine has a GPU."""
        return self.machine.device is not None

    @property
    def num_saved_modules_parameters(self) -> int:
        """Parameters that are trained whole beside the adapters."""
        tables = [name for name in self.tuning.modules_to_save if name in _TABLES]
        return len(tables) * self.shape.vocabulary * self.shape.hidden

    @property
    def num_adapted(self) -> int:
        """Parameters that the method trains besides the head and tuning.modules_to_save."""
        if self.num_counted is not None:
            return self.num_counted
        return num_adapter_parameters(self.shape, self.tuning)

    @property
    def num_trained(self) -> int:
        """Trained parameters: adapters, head and modules trained whole."""
        return (
            self.num_adapted
            + num_head_parameters(self.shape, self.tuning)
            + self.num_saved_modules_parameters
        )

    @property
    def trains_vocabulary(self) -> bool:
        """Whether the output layer of a language model has a gradient."""
        return self.shape.head != "classes" and (
            self.tuning.method == "full" or "lm_head" in self.tuning.modules_to_save
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of a micro-batch, virtual ones included, as if its rows were full."""
        of_row = self.config.data.seq_length + num_virtual_tokens(self.tuning)
        return of_row * self.config.optim.micro_rows

    @property
    def row_tokens(self) -> float:
        """Tokens that scores and masks of a token have."""
        return self.record_tokens or self.config.data.seq_length

    @property
    def reduce_bucket_size(self) -> int:
        """Elements of a bucket; the engine caps those of ZeRO 1 and 2 at what is trained."""
        size = int(self.preset.zero.get("reduce_bucket_size", 0))
        return size if self.preset.stage == 3 else min(size, self.num_trained)
