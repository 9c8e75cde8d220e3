"""A tokenizer in which a byte is a token, and records to encode with it."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from data.config import DataConfig
from data.records import Conversation, Document, Turn
from data.text.language import encode_language
from data.text.tokenization import Pieces
from data.text.tokenizer import CodeTokenizer

END = "<|endoftext|>"
CHAT_END = "<|im_end|>"


def byte_tokenizer(folder: Path, **config: object) -> CodeTokenizer:
    """Every byte of a text is one token, every special token one of its own."""
    vocabulary = {byte: n for n, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token) for token in (END, "<|im_start|>", CHAT_END)])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END} | config))
    return CodeTokenizer(folder)


def talk(*contents: str, kind: str = "chat", origin: str = "train.jsonl:1") -> Conversation:
    """User and assistant by turns."""
    turns = tuple(Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(contents))
    return Conversation(origin, turns, origin, "train.jsonl", kind)


def document(text: str, origin: str = "a.txt") -> Document:
    return Document(origin, text, origin, origin)


def decoded(pieces: Pieces, tokenizer: CodeTokenizer) -> list[list[tuple[bool, str]]]:
    """Every example as its stretches of supervised and other text."""
    library = Tokenizer.from_file(str(tokenizer.path))
    examples, first = [], 0
    for length in pieces.lengths_E.tolist():
        tokens = pieces.tokens[first : first + length]
        mask = pieces.supervised[first : first + length]
        turns = np.flatnonzero(np.diff(mask)) + 1
        parts = zip(np.split(mask, turns), np.split(tokens, turns), strict=True)
        examples.append(
            [(bool(m[0]), library.decode(t, skip_special_tokens=False)) for m, t in parts]
        )
        first += length
    return examples


def encoded(
    records: Sequence[Conversation | Document], tokenizer: CodeTokenizer, **config: object
) -> list[list[tuple[bool, str]]]:
    """The examples of records, decoded."""
    settings = DataConfig.model_validate({"template": "question_answer"} | config)
    return decoded(encode_language(records, tokenizer, settings), tokenizer)
