"""Tiny classifiers on every kind of backbone, their logits here and in stock code."""

import runpy

import numpy as np
import torch
from example_sets import example_set
from strategies import proof_settings

from data.batches.batch import collate
from trainer.models.load import VULNERABILITY
from trainer.models.proof import choose_strategy
from trainer.run.build import build_model
from trainer.run_folder.model import save_model

END, PAD, VOCABULARY = 2, 1, 400
LENGTHS = (37, 5, 80, 2, 37, 61)
# fp32 sums in another order, padded or not, through two layers with logits of about 1.
TOLERANCE = 5e-5
IDS = {
    "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": END, "pad_token_id": PAD,
    "initializer_range": 0.15,
}  # fmt: skip
LLAMA = IDS | {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8,
}  # fmt: skip
BERT = IDS | {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip
T5 = IDS | {
    "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0,
    "decoder_start_token_id": PAD,
}  # fmt: skip
BART = IDS | {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "max_position_embeddings": 256, "init_std": 0.15, "decoder_start_token_id": END,
    "forced_eos_token_id": END,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
NESTED = {
    "text_config": LLAMA
    | {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "vision_config": VISION,
    "mm_tokens_per_image": 4,
}
# Kind: type, config, class whose weights a user has, modules of the head, whether it is ours.
KINDS = {
    "llama": ("llama", LLAMA, "AutoModelForCausalLM", ["score"], False),
    "granite": ("granite", LLAMA, "AutoModelForCausalLM", ["score"], True),
    "mamba": ("mamba", IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
              "AutoModelForCausalLM", ["score"], True),
    "apertus": ("apertus", LLAMA, "AutoModelForCausalLM", ["score"], True),  # buffers in its files
    "olmoe": ("olmoe", LLAMA | {"num_experts": 4, "num_experts_per_tok": 2}, "AutoModelForCausalLM",
              ["score"], True),
    "codegen": ("codegen", IDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4,
                                  "n_positions": 256}, "AutoModelForCausalLM", ["score"], True),
    "gemma3": ("gemma3", NESTED, "AutoModelForImageTextToText", ["score"], False),
    "bert": ("bert", BERT, "AutoModelForMaskedLM", ["classifier", "bert.pooler"], False),
    "roberta": ("roberta", BERT, "AutoModelForMaskedLM", ["classifier"], False),
    "distilbert": ("distilbert", IDS | {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4,
                                        "max_position_embeddings": 256},
                   "AutoModelForMaskedLM", ["pre_classifier", "classifier"], False),
    "electra": ("electra", BERT | {"embedding_size": 16}, "AutoModelForMaskedLM", ["classifier"],
                False),
    "modernbert": ("modernbert", BERT | {"local_attention": 16, "cls_token_id": 0,
                                         "sep_token_id": END, "classifier_pooling": "mean"},
                   "AutoModelForMaskedLM", ["head", "classifier"], False),
    "deberta-v2": ("deberta-v2", BERT | {"relative_attention": True, "position_buckets": 16,
                                         "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0,
                                         "pooler_hidden_size": 32},
                   "AutoModelForMaskedLM", ["pooler", "classifier"], False),
    "t5": ("t5", T5, "AutoModelForSeq2SeqLM", ["classification_head"], False),
    "bart": ("bart", BART, "AutoModelForSeq2SeqLM", ["classification_head"], False),
}  # fmt: skip


def lora(kind):
    names = ["tuning.target_modules=[in_proj, x_proj]"] if kind == "mamba" else []
    return ["tuning.lora_r=2", *names]  # PEFT refuses mamba's out_proj


def records(seed=5):
    draw = np.random.default_rng(seed)
    pieces = [[*draw.integers(3, VOCABULARY, length - 1).tolist(), END] for length in LENGTHS]
    return pieces, example_set(pieces)


def trained(config, seed=7, classes=VULNERABILITY):
    """The built model with other trained weights, and its logits in the way it chooses itself."""
    model = build_model(config, classes).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    _, examples = records()
    settings = proof_settings(seq_length=200, is_free=True, packing=config.data.packing)
    lines = choose_strategy(model, model, examples, settings, torch.device("cpu"))
    row = np.arange(len(examples))
    rows = [row] if config.data.packing else [row[n : n + 1] for n in row]
    with torch.no_grad():
        logits = model(collate(examples, rows))
    assert float((logits - logits[0]).abs().max()) > 0.05, lines
    return model, logits


def exported(model, config, folder, names=("no", "yes")):
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    save_model(model.model, weights, folder, {"classes": list(names)}, config)
    return folder


def stock_logits(model, pieces, *, padded=False):
    """Logits of a model of transformers, of each record alone or of all in one padded batch."""
    with torch.no_grad():
        if not padded:
            ones = [torch.tensor([piece]) for piece in pieces]
            return torch.cat([_logits(model, ids, torch.ones_like(ids)) for ids in ones])
        ids = torch.full((len(pieces), max(map(len, pieces))), PAD)
        for row, piece in zip(ids, pieces, strict=True):
            row[: len(piece)] = torch.tensor(piece)
        return _logits(model, ids, (ids != PAD).long())


def _logits(model, ids, mask):
    given = model(input_ids=ids, attention_mask=mask)
    return given if isinstance(given, torch.Tensor) else given.logits


def loader_of(folder):
    return runpy.run_path(str(folder / "load_classifier.py"))["load"](str(folder))
