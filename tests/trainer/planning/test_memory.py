"""Bytes of a small model's training step, counted by hand for every method and attention."""

import json
from dataclasses import replace

import pytest

from trainer.config.machines import DEVICES, Machine
from trainer.config.preset import Preset
from trainer.config.recipe import load_run_config
from trainer.planning.memory import (
    block_bytes_per_token,
    kept_activations,
    memory_of,
    quantised_bytes,
)
from trainer.planning.plan import read_shape
from trainer.planning.resolve import resolve

# D hidden, F inner, K key and value of the one head that all H query heads share, T tokens.
D, F, K, H, T = 64, 256, 16, 4, 32
BIGCODE = {
    "model_type": "gpt_bigcode", "activation_function": "gelu_pytorch_tanh", "n_embd": D,
    "n_layer": 3, "n_head": H, "n_inner": F, "multi_query": True, "vocab_size": 99,
    "n_positions": 2 * T, "attn_pdrop": 0.1, "resid_pdrop": 0.1,
}  # fmt: skip
# Layers of a block, inputs to outputs: D to D + 2 K, D to D, D to F, F to D.
INPUTS, OUTPUTS = 3 * D + F, (D + 2 * K) + D + F + D


@pytest.fixture
def job(base, tmp_path):
    """Plain LoRA of rank 8 in bf16, whole-row attention, on one GPU."""
    (tmp_path / "config.json").write_text(json.dumps(BIGCODE))
    config = load_run_config(
        base,
        [f"model.config={tmp_path}", "data.tokenizer=data/samples/model", f"data.seq_length={T}",
         "tuning.lora_dropout=0.0", "tuning.lora_backend=peft", "model.attention=sdpa",
         "model.gradient_checkpointing=false", "engine.precision=bf16", "model.dtype=bf16",
         "optim.micro_batch_size=1"],
    )  # fmt: skip
    return resolve(config, read_shape(config), Machine(DEVICES["A100-80"], 1))


# Of a token and block in bf16: two norms with fp32 statistics, query to output and a log-sum-exp,
# one copy of the activation, two dropout masks of a byte.
NORMS, ATTENTION, ACTIVATION, MASKS = 2 * (2 * D + 8), 2 * (2 * D + 2 * K) + 4 * H, 2 * F, 2 * D
REST = NORMS + ATTENTION + ACTIVATION + MASKS
LOW_RANK = 8 * 4  # elements between the two matrices of four layers
READ = 2 * D + F  # inputs of the layers, without the one that attention keeps anyway


@pytest.mark.parametrize(
    ("changes", "adapters"),
    [
        ({}, 2 * LOW_RANK + 2 * READ),
        ({"lora_dropout": 0.1}, 2 * LOW_RANK + (2 + 1) * INPUTS),
        ({"variant": "dora"}, 2 * LOW_RANK + 2 * READ + 2 * 2 * OUTPUTS),
        ({"lora_backend": "fused"}, 2 * LOW_RANK + 2 * READ),
        ({"lora_backend": "fused", "lora_dropout": 0.1}, 2 * LOW_RANK + 2 * READ + INPUTS),
        ({"method": "ia3"}, 2 * ((D + 2 * K) + F)),  # outputs of the first, inputs of the last
        ({"method": "full"}, 2 * READ),
        # On what attention and the feed-forward give back, D each, with an inner width of 5.
        ({"method": "adapter_h", "adapter_size": 5}, 2 * (2 * D + 2 * 5)),
        ({"method": "adapter_h", "adapter_size": 5, "lora_dropout": 0.1}, 2 * (5 * D + 2 * 5)),
        ({"method": "ptuning"}, 0),
    ],
)
def test_what_the_adapters_of_a_block_keep(changes, adapters, job):
    assert block_bytes_per_token(job.changed("tuning", **changes)) == REST + adapters


def test_adapters_in_fp32_cast_what_they_read(job):
    in_fp32 = job.changed("engine", precision="fp32")
    assert block_bytes_per_token(in_fp32) == REST + 4 * LOW_RANK + 4 * INPUTS
    dropped = in_fp32.changed("tuning", lora_dropout=0.1)
    assert block_bytes_per_token(dropped) == REST + 4 * LOW_RANK + (4 + 1) * INPUTS


def test_what_attention_keeps_of_a_token(job):
    adapters = 2 * LOW_RANK + 2 * READ
    segments = job.changed("model", attention="segment_sdpa")
    assert block_bytes_per_token(segments) == REST + adapters + 2 * D  # its output is a copy
    eager = job.changed("model", attention="eager")
    # Scores of every head with all tokens: fp32 and bf16, dropped ones and their mask.
    scores = H * T * ((2 + 4) + (2 + 1))
    kept = REST - ATTENTION + 2 * (D + 2 * K) + scores + adapters + 2 * D
    assert block_bytes_per_token(eager) == kept


def test_without_a_gpu_masks_are_as_wide_as_values_and_fp32_scores_are_kept_once(job):
    host = replace(job, machine=Machine(None, 1)).changed("engine", precision="fp32")
    host = host.changed("model", dtype="fp32", attention="eager")
    norms, masks, scores = 2 * (4 * D + 2 * 4), 2 * D * 4, H * T * (4 + (4 + 4))
    attention, adapters = 4 * (D + 2 * K) + scores, 4 * LOW_RANK + 4 * (READ + D)
    assert block_bytes_per_token(host) == norms + attention + 4 * F + masks + adapters


@pytest.mark.parametrize(
    ("changes", "missing"),
    [({}, 2 * D + 8), ({"method": "full"}, 0), ({"method": "ptuning"}, 0)],
)
def test_three_blocks_the_embedding_and_the_mask_are_kept_of_every_token(changes, missing, job):
    tuned = job.changed("tuning", **changes)
    block, outside = block_bytes_per_token(tuned), 2 * D + 2 * T
    num_tokens = T + (30 if changes.get("method") == "ptuning" else 0)
    assert kept_activations(tuned) == (3 * block - missing + outside) * num_tokens
    recomputed = tuned.changed("model", gradient_checkpointing=True)
    assert kept_activations(recomputed) == (3 * 2 * D + block + outside) * num_tokens


def test_weights_of_8_bit_have_an_fp32_scale_a_row(job):
    int8 = job.changed("tuning", method="qlora", quant_type="int8")
    assert quantised_bytes(int8) == 1 + 4 / D


def under(job, **zero):
    """The job under a preset of its own."""
    return replace(job, preset=Preset("own", {"zero_optimization": zero}))


def test_a_gpu_adds_its_context_and_a_twentieth_of_what_is_allocated(job):
    memory = memory_of(job)
    allocated = memory.total - memory.context - memory.fragmentation
    assert memory.context == 0.6 * 2**30
    assert memory.fragmentation == pytest.approx(allocated / 20)
    on_host = memory_of(replace(job, machine=Machine(None, 1)))
    assert (on_host.context, on_host.fragmentation) == (0, 0)


def test_masters_and_moments_are_shared_kept_whole_or_on_the_host(job):
    two = replace(job, machine=Machine(DEVICES["A100-80"], 2))
    n = two.num_trained
    shared = memory_of(under(two, stage=1))
    assert (shared.master_weights, shared.moments) == (4 * n / 2, 8 * n / 2)
    whole = memory_of(under(two, stage=0))
    assert (whole.master_weights, whole.moments, whole.buckets) == (0, 8 * n, 0)
    offloaded = under(two, stage=1, offload_optimizer={"device": "cpu"})
    # At one micro-batch a step nothing waits: the peak is where activations are.
    held = memory_of(replace(offloaded, accumulation=1))
    assert (held.master_weights, held.moments, held.gradients) == (0, 0, 0)
    assert memory_of(replace(offloaded, accumulation=2)).gradients == 2 * n
    assert held.activations == kept_activations(two)
    without_gpu = memory_of(replace(offloaded, machine=Machine(None, 2)))  # host and device are one
    assert without_gpu.master_weights == 4 * n / 2


def test_the_update_holds_gradients_in_fp32_beside_those_of_training(job):
    # Full tuning of a model whose activations are small beside its weights.
    full = under(job.changed("tuning", method="full"), stage=1)
    n = full.num_trained
    memory = memory_of(full)
    assert memory.activations == 0
    assert (memory.gradients, memory.working) == ((2 + 4) * n, 4 * n)


def test_the_backward_pass_holds_two_gradients_of_the_widest_layer_and_a_decoded_weight(job):
    recomputed = job.changed("model", gradient_checkpointing=True)
    many = recomputed.changed("optim", micro_batch_size=64)
    assert memory_of(many).working == 2 * F * 2 * 64 * T
    quantised = many.changed("tuning", method="qlora", quant_type="nf4")
    assert memory_of(quantised).working == 2 * F * 2 * 64 * T + 2 * D * F


def test_weights_are_frozen_quantised_or_gathered(job):
    shape, n = job.shape, job.num_trained
    frozen = 3 * (D * (D + 2 * K) + D * D + 2 * D * F)
    assert shape.num_linear_weights == frozen
    others = shape.num_parameters - frozen - 2 * D  # the head of two classes is trained
    memory = memory_of(job)
    assert memory.frozen_weights == 2 * (frozen + others) + (2 * T) ** 2
    assert (memory.trained_weights, memory.quantised_weights) == (2 * n, 0)
    memory = memory_of(job.changed("tuning", method="qlora", quant_type="int8"))
    assert memory.frozen_weights == 2 * others + (2 * T) ** 2
    assert memory.quantised_weights == frozen * (1 + 4 / D)
    two = replace(job, machine=Machine(DEVICES["A100-80"], 2))
    gathered = memory_of(under(two, stage=3, stage3_max_live_parameters=1000))
    assert gathered.frozen_weights == 2 * ((frozen + others) / 2 + 1000) + (2 * T) ** 2
    all_of_it = memory_of(under(two, stage=3, stage3_max_live_parameters=10**9))
    assert all_of_it.frozen_weights == 2 * (frozen + others) * 1.5 + (2 * T) ** 2
    alone = memory_of(under(job, stage=3))
    assert alone.frozen_weights == memory_of(job).frozen_weights
