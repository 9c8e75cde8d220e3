"""Bytes of one rank's training step, by arithmetic on sizes alone.

The step has two moments that can be its peak: when the backward pass begins, all activations of a
micro-batch are alive; when the optimizer steps, all gradients are. A third one is an answer of a
language model at a validation, beside the cache of what it has read. What is kept for the backward
pass was read off the saved tensors of each block, not guessed; benchmarks/memory.py compares the
sums with measurement.

Per token and block of a known type, in elements, for hidden D, inner F, key size K, H heads, rank r
(of another type, `architectures/traced.py` counts what the model's own code keeps):

    norms        2 D             their inputs (Llama's are fp32 copies)
    adapters     input + r each  layers that read the same tensor share it, unless LoRA dropout
                                 makes every layer a copy and a mask of its own
    attention    D + 2 K, D, H   query, key and value, output, log-sum-exp
    activation   F a copy        1 for a fused GELU, 3 for SwiGLU, 4 for GPT-2's Python GELU

With recomputation a block keeps its input, D, and one block at a time keeps all of the above.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from trainer.architectures.adapters import adapted_layers, is_feed_forward, place_of
from trainer.architectures.shapes import ATTENTION, Linear, ModelShape
from trainer.config.methods import (
    BOTTLENECKS,
    BY_RECORD,
    EAGER,
    LORA,
    SEGMENT_SDPA,
    TORCH_EFFICIENT,
    adapter_size,
    takes_part_of_base,
)
from trainer.kernels.chunks import BUDGET_BYTES
from trainer.planning.resolved import Resolved

_MOMENT_BYTES = {
    "adamw": 8.0, "paged_adamw": 8.0, "adamw_8bit": 2.03, "paged_adamw_8bit": 2.03,
    "lion": 4.0, "lion_8bit": 1.015, "sgd": 4.0,
}  # fmt: skip
PAGED_REMEDY = (
    "take optim.optimizer=paged_adamw_8bit if it is not, or adamw with an _offload preset, or train"
    " fewer parameters"
)
_CUDA_CONTEXT = 0.6 * 2**30  # context and cuBLAS workspace of one process, GPUs of sm70 to sm90
_FRAGMENTATION = 0.05  # of all the allocator holds: blocks are rounded up and cached


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of its step."""

    quantised_weights: float = 0.0
    frozen_weights: float = 0.0
    trained_weights: float = 0.0
    master_weights: float = 0.0
    moments: float = 0.0
    gradients: float = 0.0
    activations: float = 0.0
    working: float = 0.0
    cache: float = 0.0
    buckets: float = 0.0
    context: float = 0.0
    fragmentation: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all components."""
        return sum(self.by_component().values())

    def by_component(self) -> dict[str, float]:
        """Name -> bytes, in the order they are drawn."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def memory_of(recipe: Resolved) -> Memory:
    """The peak of a rank's step, by component."""
    shards = recipe.machine.num_ranks if recipe.preset.stage >= 1 else 1
    weights = _weights(recipe)
    # Without a GPU, host and device are one.
    is_on_host = recipe.preset.is_offloaded and recipe.on_gpu
    buckets = recipe.train_bytes * recipe.reduce_bucket_size if recipe.preset.stage else 0.0
    step = replace(weights, buckets=buckets)
    if not is_on_host:
        step = replace(
            step,
            master_weights=4 * recipe.num_trained / shards if recipe.preset.stage else 0.0,
            moments=moment_bytes(recipe) / shards,
        )
    # Every rank holds all gradients of adapters, which are small.
    shares_gradients = recipe.tuning.method == "full" and recipe.preset.stage >= 2
    gradients = recipe.train_bytes * recipe.num_trained / (shards if shares_gradients else 1)
    backward = replace(
        step,
        gradients=gradients if recipe.accumulation != 1 else 0.0,  # micro-batches add to them
        activations=kept_activations(recipe),
        working=_backward_working(recipe),
    )
    # Gradients in fp32 for the update, and the temporaries of AdamW's loop over tensors.
    fp32 = 0.0 if is_on_host else 4 * recipe.num_trained / shards
    update = replace(step, gradients=gradients + fp32, working=fp32)
    moments = [backward, update]
    if recipe.config.is_language:
        moments.append(_writing(recipe, step))
    peak = max(moments, key=lambda memory: memory.total)
    if not recipe.on_gpu:
        return peak
    return replace(peak, context=_CUDA_CONTEXT, fragmentation=_FRAGMENTATION * peak.total)


def cache_bytes(shape: ModelShape, num_tokens: int, width: int) -> float:
    """Bytes of the keys and values of so many tokens, of one text or of several together.

    Where a model's attention sees the last ones alone, its cache is smaller.

    Args:
        width: Bytes of an activation.
    """
    return float(shape.attention.cached * num_tokens * width)


def _writing(recipe: Resolved, step: Memory) -> Memory:
    """Answers of a validation: texts that go on together fill no more than a row."""
    tokens = recipe.num_tokens // recipe.config.optim.micro_rows
    widest = 2 * recipe.shape.widest.at(recipe.row_tokens) * recipe.base_bytes * tokens
    kept = cache_bytes(recipe.shape, tokens, recipe.base_bytes)
    return replace(step, cache=kept, working=widest)


def paged_too_large(recipe: Resolved) -> str:
    """Why paged moments would not find room on a GPU beside the weights; empty where they may."""
    limit = recipe.machine.memory_bytes
    optimizer = recipe.config.optim.optimizer
    if limit is None or recipe.shape.doubt or not optimizer.startswith("paged"):
        return ""
    found = memory_of(recipe)
    held = found.quantised_weights + found.frozen_weights + found.trained_weights
    free = limit - held - found.master_weights - found.context
    if found.moments <= free:
        return ""
    return (
        f"optim.optimizer {optimizer}: {found.moments / 2**30:.2f} GiB of paged memory, and"
        f" {max(0.0, free) / 2**30:.2f} GiB of the GPU are free beside the weights; {PAGED_REMEDY}"
    )


def moment_bytes(recipe: Resolved) -> float:
    """Bytes of the optimizer's state of all that is trained.

    Of whole-matrix optimizers: muon keeps one moment of the blocks' matrices and AdamW's two of the
    rest; adafactor sums of rows and of columns of a matrix, as little as 1 / r of LoRA's.
    """
    optimizer, num_trained = recipe.config.optim.optimizer, recipe.num_trained
    if optimizer in _MOMENT_BYTES:
        return _MOMENT_BYTES[optimizer] * num_trained
    tuning, shape = recipe.tuning, recipe.shape
    is_full = tuning.method == "full"
    in_matrices = shape.num_linear_weights if is_full else recipe.num_adapted
    if optimizer == "muon":
        return 4.0 * in_matrices + 8.0 * (num_trained - in_matrices)
    if not is_full and tuning.method not in LORA:
        return 4.0 * num_trained
    layers = shape.linears if is_full else adapted_layers(shape, tuning)
    inner = 0 if is_full else 2 * tuning.lora_r
    sums = sum(one.times * (one.inputs + inner + one.outputs) for one in layers)
    tables = shape.positions + shape.vocabulary * (2 if shape.head == "vocabulary" else 1)
    rows_of_tables = tables if is_full else 0
    in_sums = in_matrices + rows_of_tables * shape.hidden
    return 4.0 * (sums + rows_of_tables + num_trained - in_sums)


def kept_activations(recipe: Resolved) -> float:
    """Bytes alive when the backward pass begins."""
    shape, kept = recipe.shape, recipe.shape.kept[recipe.base_bytes]
    outside = kept.once
    if recipe.config.model.attention not in BY_RECORD:  # a mask of whole rows
        outside += recipe.base_bytes * recipe.row_tokens
    if recipe.config.model.gradient_checkpointing:
        inputs = shape.num_layers * shape.hidden * recipe.base_bytes
        return (inputs + block_bytes_per_token(recipe) + outside) * recipe.num_tokens
    trains_inputs = recipe.tuning.method in ("full", "ptuning")
    if not (trains_inputs or recipe.num_saved_modules_parameters):
        outside -= kept.first
    return (_model_bytes(recipe) + _adapter_bytes(recipe) + outside) * recipe.num_tokens


def block_bytes_per_token(recipe: Resolved) -> float:
    """Bytes of a token that the largest block keeps for its backward pass."""
    shape = recipe.shape
    of_model = _model_bytes(recipe) / shape.kept[recipe.base_bytes].num_largest
    return of_model + _adapter_bytes(recipe) / shape.num_layers


def _model_bytes(recipe: Resolved) -> float:
    """Bytes of a token that all blocks keep, without their adapters."""
    shape, length = recipe.shape, recipe.row_tokens
    return (
        shape.kept[recipe.base_bytes].blocks.at(length)
        + shape.num_dropped.at(length) * _mask_bytes(recipe)
        + _attention_bytes(recipe)
    )


def _weights(recipe: Resolved) -> Memory:
    shape = recipe.shape
    if recipe.tuning.method == "full":
        return Memory(
            frozen_weights=shape.mask_bytes,
            trained_weights=recipe.train_bytes * _resident(recipe, recipe.num_trained),
        )
    frozen, quantised = shape.num_other_parameters - shape.num_new_parameters, 0.0
    if recipe.tuning.base_quant_type:
        quantised = shape.num_linear_weights * quantised_bytes(recipe)
    else:
        frozen += shape.num_linear_weights
    starts = recipe.train_bytes * recipe.num_adapted if takes_part_of_base(recipe.tuning) else 0
    return Memory(
        quantised_weights=quantised,
        frozen_weights=recipe.base_bytes * _resident(recipe, frozen) + shape.mask_bytes + starts,
        trained_weights=recipe.train_bytes * recipe.num_trained,
    )


def _resident(recipe: Resolved, elements: int) -> float:
    """Elements of the base on a rank: all; under ZeRO 3 its part and what is gathered."""
    num_ranks = recipe.machine.num_ranks
    if recipe.preset.stage < 3 or num_ranks == 1:
        return float(elements)
    return elements / num_ranks + min(recipe.preset.live_parameters, elements)


def quantised_bytes(recipe: Resolved) -> float:
    """Bytes of one weight, its share of the scales included.

    4 bits: 64 weights share an fp32 scale; double quantisation keeps that scale in 8 bits, with an
    fp32 scale for 256 of them (Dettmers et al. 2023, section 3). 8 bits: a scale a row.
    """
    if recipe.tuning.base_quant_type == "int8":
        return 1.0 + 4 / recipe.shape.hidden
    return 0.5 + ((1 + 4 / 256) / 64 if recipe.tuning.double_quant else 4 / 64)


def _adapter_bytes(recipe: Resolved) -> float:
    """Bytes of a token that adapted or trained layers of all blocks keep."""
    adapted, width = adapted_layers(recipe.shape, recipe.tuning), recipe.base_bytes
    if recipe.tuning.method == "full":
        return width * _read_elements(recipe, recipe.shape.linears)
    if recipe.tuning.method == "ia3":  # scales inputs of the feed-forward's last layer, or outputs
        return width * sum(
            one.times * (one.inputs if is_feed_forward(one) else one.outputs) for one in adapted
        )
    if recipe.tuning.method in BOTTLENECKS:
        return sum(one.times * _bottleneck_bytes(recipe, one) for one in adapted)
    return _lora_bytes(recipe, adapted)


def _bottleneck_bytes(recipe: Resolved, linear: Linear) -> float:
    """Input, its dropout's mask, and tanh's output; an fp32 adapter casts what is in 16 bit."""
    width = recipe.train_bytes
    place = place_of(recipe.tuning.method, linear.inputs, linear.outputs, recipe.shape.hidden)
    read = linear.outputs if place == "output" else linear.inputs
    copies = 2 * width + _mask_bytes(recipe) if recipe.tuning.lora_dropout else width
    return copies * read + width * adapter_size(recipe.tuning)


def _lora_bytes(recipe: Resolved, adapted: Sequence[Linear]) -> float:
    rank, has_dropout = recipe.tuning.lora_r, bool(recipe.tuning.lora_dropout)
    num_layers = sum(one.times for one in adapted)
    inputs = sum(one.times * one.inputs for one in adapted)
    if recipe.tuning.lora_backend == "fused":  # inputs in their dtype, a byte of mask an element
        width = recipe.base_bytes
        masks = inputs if has_dropout else 0
        return masks + rank * width * num_layers + width * _read_elements(recipe, adapted)
    width = recipe.train_bytes
    low_rank = rank * width * num_layers
    if recipe.tuning.variant == "dora":  # keeps the base's output and the adapter's
        low_rank += 2 * width * sum(one.times * one.outputs for one in adapted)
    is_cast = recipe.train_bytes == 4 and recipe.base_bytes != 4
    if is_cast and not has_dropout:  # every layer makes an fp32 copy of its own
        return low_rank + width * inputs
    if has_dropout:
        return low_rank + (width + _mask_bytes(recipe)) * inputs
    return low_rank + width * _read_elements(recipe, adapted)


def _read_elements(recipe: Resolved, adapted: Sequence[Linear]) -> int:
    """Inputs of the adapted layers, one that several read counted once."""
    read = {one.reads: one for one in adapted if not _is_kept_anyway(recipe, one)}
    return sum(one.times * one.inputs for one in read.values())


def _is_kept_anyway(recipe: Resolved, linear: Linear) -> bool:
    """The output of whole-row attention is what the layer after it reads."""
    is_whole_row = recipe.config.model.attention not in (SEGMENT_SDPA, EAGER)
    return linear.is_kept or (linear.reads == ATTENTION and is_whole_row)


def _attention_bytes(recipe: Resolved) -> float:
    """Bytes of a token beside queries, keys, values and outputs, which `Kept` counts."""
    shape, width, back_end = (
        recipe.shape.attention,
        recipe.base_bytes,
        recipe.config.model.attention,
    )
    repeats = back_end not in BY_RECORD or back_end == TORCH_EFFICIENT  # shared keys and values
    copied = width * shape.copied if repeats else 0
    if back_end != EAGER:
        written = recipe.shape.kept[width].written.at(recipe.row_tokens)
        return copied + (0.0 if recipe.on_gpu else written)
    # Scores instead of the output and the logarithm of their sum.
    scores = shape.heads * recipe.row_tokens
    probabilities = scores * (width if width == 4 else width + 4)
    dropped = scores * (width + _mask_bytes(recipe)) if shape.has_dropout else 0.0
    return copied + probabilities + dropped - width * shape.outputs - 4 * shape.heads


def _mask_bytes(recipe: Resolved) -> int:
    """Bytes of an element of a dropout mask: 1 on a GPU, those of a value on a CPU."""
    return 1 if recipe.on_gpu else recipe.base_bytes


def _backward_working(recipe: Resolved) -> float:
    """Gradients in flight at the widest layer, and a weight decoded for it."""
    width = recipe.base_bytes
    shape = recipe.shape
    decoded = max((one.inputs * one.outputs for one in shape.linears), default=0) * width
    in_flight = 2 * shape.widest.at(recipe.row_tokens) * width * recipe.num_tokens
    return max(in_flight, _loss_bytes(recipe)) + (decoded if recipe.tuning.base_quant_type else 0.0)


def _loss_bytes(recipe: Resolved) -> float:
    """Bytes of a language model's loss: states before targets, their gradients, a chunk of logits.

    A trained head's gradient is summed in fp32 and then written in the dtype of the weight. All of
    it is gone before the first block's gradients are made.
    """
    shape, width = recipe.shape, recipe.base_bytes
    if shape.head == "classes":
        return 0.0
    states = 2 * shape.hidden * width * recipe.num_tokens
    head = shape.vocabulary * shape.hidden * (4 + width) if recipe.trains_vocabulary else 0
    return states + head + BUDGET_BYTES["cuda" if recipe.on_gpu else "cpu"]
