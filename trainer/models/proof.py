"""Proof, on this model and this machine, that packed records give the model's own scores.

The reference is stock: one record a forward pass, its token ids and a padding mask of ones, the
attention that transformers takes by itself. Where a strategy gives other scores the next one is
tried; a model that no strategy gets right does not train.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.batches.batch import Batch, collate
from data.errors import first_line
from data.text.tokenization import ExampleSet
from trainer.architectures.classes import OWN
from trainer.architectures.derived import forward_fault
from trainer.config.methods import BY_RECORD
from trainer.errors import ModelError
from trainer.models.heads import PackedClassifier, PackedLanguageModel, PackedModel
from trainer.models.output import output_function, text_logits
from trainer.models.packed_attention import MASK, NATIVE, ROWS, VARLEN, Strategy
from trainer.models.proof_records import beginning, changed, proof_records
from trainer.models.quantized import quantized_layers
from trainer.models.record_rows import ZERO3_PASSES
from trainer.processes.peers import is_of_collective
from trainer.tuning.any_peft import is_any, stirred
from trainer.tuning.ptuning import is_prefixed, is_prompted

# Packed and alone run in kernels of other shapes, so they agree up to rounding: in fp32 it grows
# with depth, in 16 bit it is a few units in the last place of the hidden states.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.02}
_OWN_TOLERANCE = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.01}  # of one forward pass
# Changed neighbours keep shapes and kernels, so the difference is 0 unless a kernel mixes rows on
# purpose.
_NEIGHBOUR_TOLERANCE = 1e-5
_DEAF = 1e-6
_WINDOWS = ("window", "chunk_size", "local_attention")  # in the names of a config's lengths

Forward = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Settings:
    """What of a run the proof depends on.

    Attributes:
        attention: model.attention, settled.
        is_free: Whether another may be taken: the recipe says auto.
        one_by_one: Whether a row is a batch of its own: LLM.int8 finds outliers over whole batches.
        equal_passes: Whether all ranks need the same number of forward passes, as under ZeRO 3.
    """

    attention: str
    is_free: bool
    seq_length: int
    packing: bool
    isolate: bool
    precision: str
    one_by_one: bool = False
    equal_passes: bool = False


@dataclass(frozen=True)
class Proof:
    """Largest differences of the scores, relative to max(1, largest score).

    Attributes:
        stock: Against stock's forward pass of each record.
        neighbours: Of every other record, when those between them change; None for one text.
    """

    strategy: Strategy
    stock: float
    neighbours: float | None

    def holds(self, precision: str) -> bool:
        """Whether the differences are those of rounding."""
        moved = self.neighbours or 0.0
        return self.stock <= TOLERANCE[precision] and moved <= _NEIGHBOUR_TOLERANCE

    def __str__(self) -> str:
        """As in the banner."""
        moved = "" if self.neighbours is None else f", {self.neighbours:.1e} when neighbours change"
        return f"{self.strategy}: max |diff| to stock = {self.stock:.1e}{moved}"


@dataclass(frozen=True)
class _Scorer:
    """What each comparison of scores shares."""

    forward: Forward
    model: PackedModel
    settings: Settings
    device: torch.device

    def scores(self, strategy: Strategy, records: ExampleSet) -> Tensor:
        """Scores (S, 2) in fp32, of records in one row or, without packing, rows of their own."""
        use(self.model, strategy)
        row, settings = np.arange(len(records)), self.settings
        rows = [row] if settings.packing else [row[n : n + 1] for n in row]
        batches = [[one] for one in rows] if settings.one_by_one else [rows]
        scores = (
            self.forward(collate(records, batch, isolate=settings.isolate).to(self.device))
            for batch in batches
        )
        return torch.cat([each[:, :2].float() for each in scores])  # not the token one would choose

    def nll(self, text: ExampleSet) -> Tensor:
        """The nll (S,) of one text, as stock code takes it."""
        return self.scores(self.model.stock, text)[:, 0]


def choose_strategy(
    forward: Forward,
    model: PackedModel,
    examples: ExampleSet,
    settings: Settings,
    device: torch.device,
) -> list[str]:
    """Make the model use the first strategy that proves itself; returns the banner's lines.

    Args:
        forward: The engine or the model itself, in evaluation mode. Under ZeRO 3 all ranks call
            this together, on the same examples.

    Raises:
        ModelError: The model does not run, ignores its input or changes its logits, or no strategy
            gives its own scores.
    """
    scorer, windows = _Scorer(forward, model, settings, device), _windows(model)
    records = proof_records(examples, settings.seq_length, windows, packing=settings.packing)
    faults: list[str] = []
    with torch.no_grad(), stirred(model) if is_any(model.model) else nullcontext():
        own_S = _own_scores(scorer, records)
        for strategy in _strategies(settings, model, windows):
            try:
                proof = _prove(scorer, strategy, records, own_S)
            except Exception as error:
                if not is_of_model(error):
                    raise
                faults.append(f"{strategy}: {first_line(error)}")
                continue
            if proof.holds(settings.precision):
                use(model, strategy)
                return _lines(proof, records, faults, windows, settings)
            faults.append(str(proof))
    raise ModelError(_refusal(_kind(model), faults, settings))


def use(model: PackedModel, strategy: Strategy) -> None:
    """Make a model keep records apart by a strategy.

    Raises:
        NotImplementedError: transformers does not let this model's attention be chosen.
    """
    base = model.model.get_base_model()
    if base.config._attn_implementation != strategy.attention:
        base.set_attn_implementation(strategy.attention)
    if base.config._attn_implementation != strategy.attention:
        raise NotImplementedError(f"{type(base).__name__} does not let its attention be chosen")
    model.strategy = strategy


def _own_scores(scorer: _Scorer, records: ExampleSet) -> Tensor:
    """The scores of stock's forward pass of each record."""
    model = scorer.model
    try:
        use(model, model.stock)
        if isinstance(model, PackedLanguageModel):
            _refuse_sighted(scorer, records)
            _settle_output(scorer, model, records)
        own_S = _finite_scores(scorer, records)
    except Exception as error:
        if not is_of_model(error):
            raise
        raise fault_of(model, error) from error
    if len(records) > 1 and float((own_S - own_S[0]).abs().max()) <= _DEAF:
        raise ModelError("the model's logits do not depend on its input; check its weights")
    return own_S


def _finite_scores(scorer: _Scorer, records: ExampleSet) -> Tensor:
    """The model's own scores; refuses those that are not finite, naming the first such layer."""
    own_S = scorer.scores(scorer.model.stock, records)
    if own_S.isfinite().all():
        return own_S
    first: list[str] = []

    def look(name: str, outputs: Any) -> None:
        values = outputs if isinstance(outputs, tuple) else (outputs,)
        floats = [one for one in values if torch.is_tensor(one) and one.is_floating_point()]
        if not first and not all(one.isfinite().all() for one in floats):
            first.append(name)

    layers = [(n, m) for n, m in scorer.model.model.named_modules() if not list(m.children())]
    hooks = [m.register_forward_hook(lambda *a, n=n: look(n, a[2])) for n, m in layers]
    try:
        scorer.scores(scorer.model.stock, records)
    finally:
        for hook in hooks:
            hook.remove()
    remedy = "take another base"
    if scorer.settings.precision == "fp16":
        remedy = (
            "fp16 ends at 65,504, and bases trained in bf16, such as Qwen2.5, go beyond: take"
            " engine.precision=fp32, a GPU of sm80 or newer, which has bf16, or another base; a"
            " lower optim.lr does not help"
        )
    where = f", first behind {first[0]}" if first else ""
    raise ModelError(f"{_kind(scorer.model)}: its own scores are not finite{where}; {remedy}")


def _strategies(
    settings: Settings, model: PackedModel, windows: Sequence[int]
) -> Iterator[Strategy]:
    """What can be tried, in order: from the cheapest to the most general."""
    stock, prompts = model.stock, is_prompted(model.model)
    if prompts and (settings.packing or is_prefixed(model.model)):  # a packed row has no room
        yield Strategy(ROWS, stock.attention, ZERO3_PASSES if settings.equal_passes else None)
        return
    rows_alone = isinstance(model, PackedClassifier) and model.pooling == OWN
    if settings.attention in BY_RECORD and not rows_alone:
        yield Strategy(VARLEN, settings.attention)
        if not settings.is_free:
            return
    attention = stock.attention if settings.is_free else settings.attention
    # Before native, which compares positions on the host and so waits for a GPU in every step.
    if not rows_alone and not any(window < settings.seq_length for window in windows):
        yield Strategy(MASK, attention)
    if not rows_alone:
        yield Strategy(NATIVE, attention)
    yield Strategy(ROWS, attention, ZERO3_PASSES if settings.equal_passes else None)
    if not settings.equal_passes:
        yield replace(stock, attention=attention, most_padding=0.0)
        yield replace(stock, attention=attention)


def _prove(scorer: _Scorer, strategy: Strategy, records: ExampleSet, own_S: Tensor) -> Proof:
    # All records in one padded pass, which mixes their lengths more than any batch will.
    tried = replace(strategy, num_passes=1) if strategy.most_padding > 0 else strategy
    packed_S = scorer.scores(tried, records)
    scale = max(1.0, float(own_S.abs().max()))
    moved = None
    if scorer.settings.isolate:
        is_changed_E = np.arange(len(records), 0, -1) % 2 == 0
        example_S = collate(records, [np.arange(len(records))]).example_S
        is_kept_S = torch.from_numpy(~is_changed_E[example_S]).to(scorer.device)
        others_S = scorer.scores(tried, changed(records, is_changed_E))
        moved = float((others_S - packed_S)[is_kept_S].abs().max()) / scale
    return Proof(strategy, float((packed_S - own_S).abs().max()) / scale, moved)


def _refuse_sighted(scorer: _Scorer, records: ExampleSet) -> None:
    """Refuse an encoder, whose tokens see the one that they should predict."""
    short = beginning(records)
    later = replace(short, tokens=np.append(short.tokens[:-1], short.tokens[0]))
    before_S, after_S = (_finite_scores(scorer, text)[:-1, 0] for text in (short, later))
    allowed = TOLERANCE[scorer.settings.precision] * max(1.0, float(before_S.norm(p=float("inf"))))
    if float((after_S - before_S).norm(p=float("inf"))) > allowed:
        other = "a decoder, or a tuning.method of every token alone, as lora,"
        raise ModelError(
            f"{_kind(scorer.model)}: its tokens see later tokens, so it cannot learn to predict"
            f" them; take {other if is_any(scorer.model.model) else 'a decoder'} for this task, or"
            " task.name=classification"
        )


def _settle_output(scorer: _Scorer, model: PackedLanguageModel, records: ExampleSet) -> None:
    """Let the loss do to its logits what the model does, and compare both on one short text."""
    if is_prompted(model.model):  # transformers' own forward knows no virtual tokens
        return
    short = beginning(records)
    batch = collate(short, [np.array([0])]).to(scorer.device)
    ids_1T = batch.input_ids_BT[:, : batch.used_B[0]]
    whole = model.model.get_base_model()
    model.loss.scale, model.loss.cap = output_function(whole, ids_1T)
    ours_S = scorer.nll(short)
    chances_SV = text_logits(whole, ids_1T)[0, batch.read_S].float().log_softmax(-1)
    own_S = -chances_SV.gather(1, batch.labels_S[:, None])[:, 0]
    difference = float((ours_S - own_S).abs().max() / own_S.abs().max().clamp(min=1.0))
    if not difference <= _OWN_TOLERANCE[scorer.settings.precision]:
        raise ModelError(
            f"{_kind(model)}: the loss of the output layer alone is not that of the model's own"
            f" forward (relative difference {difference:.1e}); take another base"
        )


def fault_of(model: PackedModel, error: Exception) -> ModelError:
    """The error of a model whose own code fails."""
    source = model.model.get_base_model().name_or_path
    if quantized_layers(model):  # some models compute with weights themselves
        remedy = "take a base that is not quantised, tuning.method=lora"
        return forward_fault(source, _kind(model), error, remedy)
    return forward_fault(source, _kind(model), error)


def is_of_model(error: Exception) -> bool:
    """Whether an error is the model's own: not one of ours, of memory, or of a collective."""
    is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return not (
        hasattr(error, "exit_code")
        or is_memory
        or "allocate memory" in str(error)
        or is_of_collective(error)
    )


def _kind(model: PackedModel) -> str:
    kind: str = model.model.get_base_model().config.model_type
    return kind


def _windows(model: PackedModel) -> list[int]:
    """Lengths in the config that may limit what a token sees."""
    settings: Any = model.model.get_base_model().config.get_text_config()
    found: set[int] = set()
    for name, value in settings.to_dict().items():
        if any(part in name for part in _WINDOWS):
            values = value if isinstance(value, list) else [value]
            found.update(one for one in values if type(one) is int and one > 0)
    return sorted(found)


def _lines(
    proof: Proof,
    records: ExampleSet,
    faults: Sequence[str],
    windows: Sequence[int],
    settings: Settings,
) -> list[str]:
    longest = int(records.lengths.max())
    lines = [f"  records    {proof} ({len(records)} records of up to {longest:,} tokens)"]
    lines += [f"             not {fault}" for fault in faults]
    beyond = [window for window in windows if longest <= window < settings.seq_length]
    if beyond:
        lines.append(f"             the proof does not reach beyond {max(beyond):,} tokens")
    return lines


def _refusal(kind: str, faults: Sequence[str], settings: Settings) -> str:
    tried = "; ".join(faults)
    remedy = "take another base"
    if not settings.is_free:
        remedy = "set model.attention=auto, which tries every way"
    elif settings.equal_passes:
        remedy = "take ZeRO 0 to 2, by which each record can have a pass of its own"
    elif settings.packing:
        remedy = "set data.packing=false, or take another base"
    allowed = f"allowed {TOLERANCE[settings.precision]:.0e} and {_NEIGHBOUR_TOLERANCE:.0e}"
    return (
        f"{kind}: packed records do not give the model's own scores ({allowed}): {tried}; {remedy}"
    )
