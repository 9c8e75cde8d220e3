"""Compares scores of an exported folder by stock libraries, in a fresh process, with ours."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from data.text.terminal import step
from data.text.tokenization import ExampleSet
from trainer.errors import ModelError

_SCRIPT = Path(__file__).with_name("stock_scores.py")
_LIBRARY = {"pipeline": "transformers", "adapter": "peft", "loader": "load_classifier.py",
            "onnx": "onnxruntime"}  # fmt: skip
_OF_CPU = (
    " (on CPUs with AVX512, bitsandbytes itself decodes 4-bit rows wrongly whose width is not a"
    " multiple of 64: compare on a GPU, or export with --merge)"
)
# Largest difference of a score (probability, or mean loss): rounding of fp32 in another order; in
# 16 bit a few units in the last place of logits.
TOLERANCES = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Rows:
    """What is scored.

    Attributes:
        title: Where it comes from, for people.
        examples: As the model reads them.
        texts: Of each example what stock's tokenizer gets, {"text", "text_pair"} of a pair; None
            where token ids are compared.
        num_left_out: Rows that stock's tokenizer cannot make as training did.
    """

    title: str
    examples: ExampleSet
    texts: Sequence[Any] | None
    num_left_out: int = 0

    def some(self, chosen: npt.NDArray[np.int64]) -> "Rows":
        """Some of the rows."""
        texts = None if self.texts is None else [self.texts[place] for place in chosen]
        return replace(self, examples=self.examples.subset(chosen), texts=texts)


@dataclass(frozen=True)
class Check:
    """A comparison.

    Attributes:
        difference: The largest of a score.
        tolerance: Allowed for the dtype.
        line: All of it, for people.
    """

    difference: float
    tolerance: float
    line: str


def check_stock(
    folder: Path, asked: Mapping[str, Any], rows: Rows, ours: list[list[float]], dtype: str
) -> Check:
    """Score rows with stock libraries alone.

    Args:
        folder: That is exported.
        asked: What trainer/run/stock_scores.py reads, but for the rows.
        ours: Scores of each row that it has to give.
        dtype: Of the weights.

    Raises:
        ModelError: They do not load it, or give other scores.
    """
    with step(f"stock libraries score {len(ours)} rows in a fresh process"):
        answer = _fresh(folder, {**asked, **_content(rows)})
    difference = float(np.abs(np.array(answer["scores"]) - np.array(ours)).max())
    library, tolerance = _LIBRARY[asked["way"]], TOLERANCES[dtype]
    with_version = library if "." in library else f"{library} {version(library)}"
    score = "scores" if rows.texts is not None else "mean losses"
    left_out = f"; {rows.num_left_out} longer ones left out" if rows.num_left_out else ""
    line = (
        f"{with_version} in a fresh process: {score} of {len(ours)} rows of {rows.title}{left_out}"
        f" differ by {difference:.1e} at most (allowed for {dtype}: {tolerance:.0e})"
    )
    if answer["remark"]:
        line = f"{line}; {answer['remark']}"
    if not difference <= tolerance:  # also NaN
        why = _OF_CPU if asked.get("quantization") else ""
        raise ModelError(f"{line}: the export is not the model; nothing was written{why}")
    return Check(difference, tolerance, line)


def _content(rows: Rows) -> dict[str, Any]:
    examples, places = rows.examples, list(pairwise(rows.examples.starts.tolist()))
    ids = [examples.tokens[first:end].tolist() for first, end in places]
    if rows.texts is not None:
        return {"texts": list(rows.texts), "expected": ids}
    assert examples.supervised is not None
    marks = [np.flatnonzero(examples.supervised[first:end]).tolist() for first, end in places]
    return {"ids": ids, "targets": [[n for n in of_text if n] for of_text in marks]}


def _fresh(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    with TemporaryDirectory(prefix="focaltune-stock-") as work:
        request, answer = Path(work) / "asked.json", Path(work) / "answers.json"
        request.write_text(json.dumps(asked), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-P", str(_SCRIPT), str(request), str(answer)],
            capture_output=True, text=True, check=False,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ModelError(
                f"stock libraries do not score {folder} ({said[:300]}); nothing was written"
            )
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found
