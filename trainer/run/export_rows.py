"""Real rows by which an export is compared: a file, the validation split, or embedded functions."""

import gzip
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.prepared.prepare import Split, read_split
from data.readers import locate, named_files
from data.text.tokenization import normalize_whitespace
from trainer.config.preset import ROOT
from trainer.run.preparation import prepare_run
from trainer.run.stock_check import Rows
from trainer.run.trained import Trained

_EMBEDDED = ROOT / "data" / "samples" / "valid.jsonl.gz"
_MOST_EMBEDDED = 200
_CUT_BY_STOCK = ("truncate", "truncate_left")


def export_rows(trained: Trained, file: Path | None) -> Rows:
    """Rows as the model reads them and as stock's tokenizer gets them.

    Args:
        trained: How they are read.
        file: A file, folder, glob or archive; None: the run's validation split, or else functions
            that come with the program.

    Raises:
        DataError: The file cannot be read, or holds nothing to compare.
    """
    if file is not None:
        paths = named_files(
            [str(file)], "--data", trained.config.data, split="test",
            language=trained.config.is_language,
        )  # fmt: skip
        return _of_split(trained, _read(trained, paths), file.name)
    try:
        return _of_split(trained, _valid(trained), "the validation split")
    except DataError:
        return _embedded(trained)


def _read(trained: Trained, paths: Sequence[Path]) -> Split:
    config = trained.config
    return read_split(
        paths, "rows", config.data, trained.tokenizer, language=config.is_language,
        classes=trained.classes,
    )[0]  # fmt: skip


def _valid(trained: Trained) -> Split:
    """The validation split alone; it can be a part of train."""
    config = trained.training_config(())
    paths = locate(config.data, "valid", language=config.is_language)
    return _read(trained, paths) if paths else prepare_run(config).splits["valid"]


def _of_split(trained: Trained, split: Split, title: str) -> Rows:
    """The examples that stock's tokenizer can make: whole records, or cut where it cuts."""
    examples, data = split.examples, trained.config.data
    if trained.config.is_language:
        return Rows(title, examples, None)
    room = data.seq_length - trained.tokenizer.num_added
    is_long_N = (split.code_lengths > room) | (split.code_lengths < 0)
    samples = [split.samples[number] for number in range(len(is_long_N))]
    is_pair_N = np.array([bool(sample.code2) for sample in samples])
    is_left_out_N = is_long_N & (is_pair_N | (data.long_functions not in _CUT_BY_STOCK))
    chosen_E = np.flatnonzero(~is_left_out_N[examples.record_E])
    if not len(chosen_E):
        raise DataError(f"{title}: every function is cut in a way that stock tools do not know")
    texts = [
        _text(trained, samples[number].code, samples[number].code2)
        for number in examples.record_E.tolist()
    ]
    left_out = int(is_left_out_N.sum())
    return Rows(title, examples, texts, left_out).some(chosen_E)


def _text(trained: Trained, code: str, second: str) -> Any:
    mode = trained.config.data.normalize_whitespace
    if mode == "lines":  # collapse is the exported tokenizer's
        code, second = (normalize_whitespace(text, mode) for text in (code, second))
    return {"text": code, "text_pair": second} if second else code


def _embedded(trained: Trained) -> Rows:
    """Functions that come with the program, up to the model's length."""
    with gzip.open(_EMBEDDED, "rt", encoding="utf-8") as lines:
        codes = [json.loads(line)["code"] for line in islice(lines, _MOST_EMBEDDED)]
    data = trained.config.data
    texts = [normalize_whitespace(code, data.normalize_whitespace) for code in codes]
    limit = data.seq_length - trained.tokenizer.num_added
    ids_N = trained.tokenizer.encode(texts)
    short = [code for code, ids in zip(codes, ids_N, strict=True) if len(ids) <= limit]
    if not short:
        raise DataError(
            f"no embedded function fits in data.seq_length {data.seq_length}; give --data"
        )
    shown = None if trained.config.is_language else [_text(trained, code, "") for code in short]
    return Rows("the embedded functions", trained.examples_of(short)[0], shown)
