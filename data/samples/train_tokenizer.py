"""The tiny model's folder: a byte-level BPE trained on the train split, and a GPTBigCode config."""

import json
import os
from pathlib import Path
from typing import Any

# One thread and no parallel counting: the merges must not depend on the machine. Both are read
# when the tokenizers package is first used, so they are set before it is imported.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
VOCAB_SIZE = 2_048
NUM_POSITIONS = 2_048

MODEL_CONFIG: dict[str, Any] = {
    "architectures": ["GPTBigCodeForCausalLM"],
    "model_type": "gpt_bigcode",
    "activation_function": "gelu_pytorch_tanh",
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "vocab_size": VOCAB_SIZE,
    "n_positions": NUM_POSITIONS,
    "n_embd": 128,
    "n_layer": 4,
    "n_head": 4,
    "n_inner": 512,
    "multi_query": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": EOS_TOKEN,
    "eos_token": EOS_TOKEN,
    "pad_token": PAD_TOKEN,
    "unk_token": EOS_TOKEN,
    "model_max_length": NUM_POSITIONS,
    "clean_up_tokenization_spaces": False,
}


def train_tokenizer(texts: list[str]) -> str:
    """Train the byte-level BPE and give its tokenizer.json text.

    The pattern of GPT-2 splits words first, so a run of spaces is a piece of its own and can
    become one token; every byte is in the alphabet, so no text is unknown.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, tokenizer.get_vocab_size()
    text: str = tokenizer.to_str(pretty=True)
    return text


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_model(folder: Path, texts: list[str]) -> None:
    """Write tokenizer.json, tokenizer_config.json and config.json in the Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(train_tokenizer(texts) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json(folder / "config.json", MODEL_CONFIG)
