"""Bytes of one rank's training step, by arithmetic on sizes alone.

The step has two moments that can be its peak: when the backward pass begins, all activations of a
micro-batch are alive; when the optimizer steps, all gradients are. What is kept for the backward
pass was read off the saved tensors of each block, not guessed; benchmarks/memory.py compares the
sums with measurement.

Per token and block, in elements, for hidden D, inner F, key size K, H heads, rank r:

    norms        2 D             their inputs (Llama's are fp32 copies)
    adapters     input + r each  layers that read the same tensor share it, unless LoRA dropout
                                 makes every layer a copy and a mask of its own
    attention    D + 2 K, D, H   query, key and value, output, log-sum-exp
    activation   F a copy        1 for a fused GELU, 3 for SwiGLU, 4 for GPT-2's Python GELU

With recomputation a block keeps its input, D, and one block at a time keeps all of the above.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from trainer.architectures.shapes import Linear, ModelShape
from trainer.architectures.targets import (
    adapted_layers,
    is_feed_forward,
    num_adapter_parameters,
    num_head_parameters,
    place_of,
)
from trainer.config.methods import BOTTLENECKS, adapter_size, num_virtual_tokens
from trainer.config.sections import TuningSection

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
SEGMENT_SDPA, FLASH, EAGER = "segment_sdpa", "flash_attention_2", "eager"
_MOMENT_BYTES = {"adamw": 8.0, "paged_adamw": 8.0, "adamw_8bit": 2.03, "paged_adamw_8bit": 2.03}
_CUDA_CONTEXT = 0.6 * 2**30  # context and cuBLAS workspace of one process, GPUs of sm70 to sm90
_FRAGMENTATION = 0.05  # of all the allocator holds: blocks are rounded up and cached
LOSS_CHUNK_BYTES = {"cuda": 640 << 20, "cpu": 16 << 20}  # kernels.chunks, which imports torch


@dataclass(frozen=True)
class Job:
    """All that the memory of a training step depends on.

    Attributes:
        shape: The model.
        method, double_quant: Of the tuning section.
        quant_type: Of the base; None where it is not quantised.
        precision: Of training, resolved.
        base_dtype: Of the frozen weights that are not quantised, and of activations.
        tuning: The tuning section.
        is_fused: LoRA's layers are ours, not PEFT's.
        num_saved_modules_parameters: Trained whole beside the adapters.
        optimizer: Of the optim section.
        zero_stage, reduce_bucket_size: Of the preset; the bucket counts elements.
        is_offloaded: The preset keeps masters and moments in host memory.
        communication_dtype: Of gradients under way; None is that of training.
        live_parameters: ZeRO 3 keeps so many gathered; DeepSpeed's default.
        world_size: Ranks.
        seq_length, micro_batch_size: Rows are taken as full.
        attention: Resolved back end.
        checkpointing: Whether blocks are recomputed.
        accumulates: Whether a step has several micro-batches, so that gradients wait.
        on_gpu: Adds the CUDA context and an allowance for fragmentation.
    """

    shape: ModelShape
    method: str
    quant_type: str | None
    double_quant: bool
    precision: str
    base_dtype: str
    tuning: TuningSection
    is_fused: bool
    num_saved_modules_parameters: int
    optimizer: str
    zero_stage: int
    reduce_bucket_size: int
    world_size: int
    seq_length: int
    micro_batch_size: int
    attention: str
    checkpointing: bool
    accumulates: bool
    on_gpu: bool
    is_offloaded: bool = False
    communication_dtype: str | None = None
    live_parameters: int = 1_000_000_000

    @property
    def num_trained(self) -> int:
        """Adapters, head and modules trained whole."""
        return (
            num_adapter_parameters(self.shape, self.tuning)
            + num_head_parameters(self.shape, self.tuning)
            + self.num_saved_modules_parameters
        )

    @property
    def trains_vocabulary(self) -> bool:
        """Whether the output layer of a language model has a gradient."""
        return self.shape.head != "classes" and (
            self.method == "full" or "lm_head" in self.tuning.modules_to_save
        )

    @property
    def num_tokens(self) -> int:
        """Of a micro-batch, virtual ones included."""
        return (self.seq_length + num_virtual_tokens(self.tuning)) * self.micro_batch_size

    @property
    def gradient_shards(self) -> int:
        """Ranks that share the gradients; of adapters, which are small, each holds all."""
        return self.world_size if self.method == "full" and self.zero_stage >= 2 else 1


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


def memory_of(job: Job) -> Memory:
    """The peak of a rank's step, by component."""
    shards = job.world_size if job.zero_stage >= 1 else 1
    weights = _weights(job)
    is_on_host = job.is_offloaded and job.on_gpu  # without a GPU host and device are one
    step = replace(weights, buckets=_buckets(job))
    if not is_on_host:
        step = replace(
            step,
            master_weights=4 * job.num_trained / shards if job.zero_stage else 0.0,
            moments=_MOMENT_BYTES[job.optimizer] * job.num_trained / shards,
        )
    train_bytes = BYTES[job.precision]
    backward = replace(
        step,
        gradients=train_bytes * job.num_trained / job.gradient_shards if job.accumulates else 0.0,
        activations=kept_activations(job),
        working=_backward_working(job),
    )
    # Gradients in fp32 for the update, and the temporaries of AdamW's loop over tensors.
    fp32 = 0.0 if is_on_host else 4 * job.num_trained / shards
    update = replace(
        step,
        gradients=train_bytes * job.num_trained / job.gradient_shards + fp32,
        working=fp32,
    )
    peak = max(backward, update, key=lambda memory: memory.total)
    if not job.on_gpu:
        return peak
    return replace(peak, context=_CUDA_CONTEXT, fragmentation=_FRAGMENTATION * peak.total)


def kept_activations(job: Job) -> float:
    """Bytes alive when the backward pass begins."""
    shape, width = job.shape, BYTES[job.base_dtype]
    block = block_bytes_per_token(job)
    outside = shape.hidden * width + _once_bytes_per_token(job)
    if job.checkpointing:
        kept = shape.num_layers * shape.hidden * width + block
    else:
        kept = shape.num_layers * block
        # Nothing before the first norm is trained.
        if not job.num_saved_modules_parameters and job.method not in ("full", "ptuning"):
            kept -= _norm_bytes(job)
    return (kept + outside) * job.num_tokens


def block_bytes_per_token(job: Job) -> float:
    """What one block keeps of a token for its backward pass."""
    shape, width = job.shape, BYTES[job.base_dtype]
    dropout_masks = 2 * shape.hidden * _mask_bytes(job) if shape.dropout else 0.0
    return (
        2 * _norm_bytes(job)
        + _adapter_bytes(job)
        + _attention_bytes(job)
        + shape.activation_copies * shape.inner * width
        + dropout_masks
    )


def _weights(job: Job) -> Memory:
    shape, width = job.shape, BYTES[job.base_dtype]
    frozen = float(shape.num_other_parameters - shape.num_new_parameters)
    quantised = 0.0
    if job.method == "full":
        return _trained_base(job)
    if job.quant_type:
        quantised = shape.num_linear_weights * quantised_bytes(job)
    else:
        frozen += shape.num_linear_weights
    resident = width * frozen
    if job.zero_stage == 3:
        gathered = min(job.live_parameters, frozen) if job.world_size > 1 else 0.0
        resident = width * (frozen / job.world_size + gathered)
    return Memory(
        quantised_weights=quantised,
        frozen_weights=resident + shape.mask_bytes,
        trained_weights=BYTES[job.precision] * job.num_trained,
    )


def _trained_base(job: Job) -> Memory:
    """The weights of full fine-tuning, in pieces under ZeRO 3."""
    width, trained = BYTES[job.precision], float(job.num_trained)
    if job.zero_stage == 3:
        gathered = min(job.live_parameters, trained) if job.world_size > 1 else 0.0
        trained = trained / job.world_size + gathered
    return Memory(trained_weights=width * trained, frozen_weights=job.shape.mask_bytes)


def quantised_bytes(job: Job) -> float:
    """Bytes of one weight, its share of the scales included.

    4 bits: 64 weights share an fp32 scale; double quantisation keeps that scale in 8 bits, with an
    fp32 scale for 256 of them (Dettmers et al. 2023, section 3). 8 bits: a scale a row.
    """
    if job.quant_type == "int8":
        return 1.0 + 4 / job.shape.hidden
    return 0.5 + ((1 + 4 / 256) / 64 if job.double_quant else 4 / 64)


def _buckets(job: Job) -> float:
    return BYTES[job.precision] * job.reduce_bucket_size if job.zero_stage else 0.0


def _norm_bytes(job: Job) -> float:
    """The input of one norm and its statistics."""
    if job.shape.family == "llama":
        return 4 * job.shape.hidden + 4
    width = BYTES[job.base_dtype]
    return width * job.shape.hidden + 2 * (4 if job.on_gpu else width)


def _adapter_bytes(job: Job) -> float:
    """What the layers that are adapted, or trained, keep of a token."""
    adapted, width = adapted_layers(job.shape, job.tuning), BYTES[job.base_dtype]
    if job.method == "full":
        return width * _read_elements(job, job.shape.linears)
    if job.method == "ia3":  # what is scaled: inputs of the feed-forward's last layer, else outputs
        scaled = [one.inputs if is_feed_forward(one.path) else one.outputs for one in adapted]
        return width * sum(scaled)
    if job.method in BOTTLENECKS:
        return sum(_bottleneck_bytes(job, linear) for linear in adapted)
    return _lora_bytes(job, adapted)


def _bottleneck_bytes(job: Job, linear: Linear) -> float:
    """Input, its dropout's mask, and tanh's output; an fp32 adapter casts what is in 16 bit."""
    width = BYTES[job.precision]
    place = place_of(job.method, linear.inputs, linear.outputs, job.shape.hidden)
    read = linear.outputs if place == "output" else linear.inputs
    copies = 2 * width + _mask_bytes(job) if job.tuning.lora_dropout else width
    return copies * read + width * adapter_size(job.tuning)


def _lora_bytes(job: Job, adapted: Sequence[Linear]) -> float:
    rank, has_dropout = job.tuning.lora_r, bool(job.tuning.lora_dropout)
    if job.is_fused:  # inputs in their own dtype, a mask of one byte an element
        masks = sum(linear.inputs for linear in adapted) if has_dropout else 0
        width = BYTES[job.base_dtype]
        return masks + rank * width * len(adapted) + width * _read_elements(job, adapted)
    width = BYTES[job.precision]
    low_rank = rank * width * len(adapted)
    if job.tuning.variant == "dora":  # keeps the base's output and the adapter's
        low_rank += 2 * width * sum(linear.outputs for linear in adapted)
    is_cast = job.precision == "fp32" and job.base_dtype != "fp32"
    if is_cast and not has_dropout:  # every layer makes an fp32 copy of its own
        return low_rank + sum(width * linear.inputs for linear in adapted)
    if has_dropout:
        return low_rank + sum((width + _mask_bytes(job)) * linear.inputs for linear in adapted)
    return low_rank + width * _read_elements(job, adapted)


def _read_elements(job: Job, adapted: Sequence[Linear]) -> int:
    """Inputs of the adapted layers, one that several read counted once."""
    read = {linear.reads: linear for linear in adapted}
    return sum(linear.inputs for linear in read.values() if not _is_kept_anyway(job, linear))


def _is_kept_anyway(job: Job, linear: Linear) -> bool:
    """The output of whole-row attention is what the layer after it reads."""
    return linear.reads == "attention" and job.attention != SEGMENT_SDPA and job.attention != EAGER


def _attention_bytes(job: Job) -> float:
    shape, width = job.shape, BYTES[job.base_dtype]
    queries = shape.num_heads * shape.head_size
    keys = shape.kv_size
    has_copied_keys = shape.family == "llama" and job.attention not in (SEGMENT_SDPA, FLASH)
    qkv = queries + 2 * (queries if has_copied_keys else keys)
    if job.attention != EAGER:
        return width * (qkv + queries) + 4 * shape.num_heads
    scores = shape.num_heads * job.seq_length
    probabilities = scores * (width if width == 4 else width + 4)
    dropped = scores * (width + _mask_bytes(job)) if shape.attention_dropout else 0.0
    return width * qkv + probabilities + dropped


def _once_bytes_per_token(job: Job) -> float:
    """The mask of whole rows, and the rotary tables."""
    width = BYTES[job.base_dtype]
    has_mask = job.attention not in (SEGMENT_SDPA, FLASH)
    mask = width * job.seq_length if has_mask else 0.0
    rotary = 2 * width * job.shape.head_size if job.shape.family == "llama" else 0.0
    return mask + rotary


def _mask_bytes(job: Job) -> int:
    """Of a dropout mask's element: a byte on a GPU, the dtype of the values on a CPU."""
    return 1 if job.on_gpu else BYTES[job.base_dtype]


def _backward_working(job: Job) -> float:
    """Gradients in flight at the widest layer, and a weight decoded for it."""
    width = BYTES[job.base_dtype]
    decoded = max(linear.num_weights for linear in job.shape.linears) * width
    in_flight = 2 * job.shape.inner * width * job.num_tokens
    return max(in_flight, _loss_bytes(job)) + (decoded if job.quant_type else 0.0)


def _loss_bytes(job: Job) -> float:
    """Of a language model's loss: states before targets, their gradients, a chunk of logits.

    A trained head's gradient is summed in fp32 and then written in the dtype of the weight. All of
    it is gone before the first block's gradients are made.
    """
    shape, width = job.shape, BYTES[job.base_dtype]
    if shape.head == "classes":
        return 0.0
    states = 2 * shape.hidden * width * job.num_tokens
    head = shape.vocabulary * shape.hidden * (4 + width) if job.trains_vocabulary else 0
    return states + head + LOSS_CHUNK_BYTES["cuda" if job.on_gpu else "cpu"]
