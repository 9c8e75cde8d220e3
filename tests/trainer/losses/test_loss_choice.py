"""What a classification step never does."""

import pytest
import torch
from example_sets import random_examples
from strategies import kept_apart
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification, GPT2Config

from data.batches.batch import collate
from trainer.config.sections import LossSection, TuningSection
from trainer.losses.tasks import Classification
from trainer.models.heads import PackedClassifier
from trainer.tuning.peft_layers import add_lora

CPU = torch.device("cpu")
# Operations that wait until the device has computed.
SYNCS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero"}


@pytest.mark.parametrize("attention", ["sdpa", "segment_sdpa"])
def test_a_classification_step_never_waits_and_projects_functions_only(attention):
    settings = GPT2Config(
        vocab_size=300, n_embd=48, n_layer=1, n_head=2, n_positions=128,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    base = AutoModelForSequenceClassification.from_config(settings)
    model = kept_apart(PackedClassifier(add_lora(base, TuningSection(lora_r=3))), attention)
    task = Classification(LossSection(gamma=2.0, alpha=[0.4, 0.6]), CPU)
    examples = random_examples(9, 30)
    batch = collate(examples, [[0, 1, 2, 3], [4, 5], [6, 7, 8]])
    task.loss_sum(model, batch)  # what the first call alone does, such as caches
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        loss = task.loss_sum(model, batch)
        loss.sum.backward()
    operations = {event.name for event in seen.events()}
    assert {"aten::index", "aten::mm"} <= operations  # the profile has seen the step
    assert not operations & SYNCS
    heads = [
        event.input_shapes
        for event in seen.events()
        if event.name == "aten::linear" and event.input_shapes[1] == [2, 48]
    ]
    assert heads == [[[9, 48], [2, 48], []]]  # 9 functions, not the 3 rows' tokens
    assert batch.input_ids_BT.numel() > 9


def test_the_profile_would_see_a_wait():
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.ones(3).sum().item()
    assert SYNCS & {event.name for event in seen.events()}
