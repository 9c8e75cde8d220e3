"""model.onnx of an encoder gives the report's scores in onnxruntime, or nothing is written."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import sample_rows
from rank_pool import run_ranks
from transformers import AutoTokenizer

from launcher.export import main as export
from trainer.errors import ConfigError
from trainer.run import export as exporting
from trainer.run.trained import open_trained

BERT = {
    "model_type": "bert", "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 1024,
    "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_recipe, tiny_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("onnx")
    (root / "bert.json").write_text(json.dumps(BERT))
    words = [
        str(tiny_recipe), f"run.output_dir={root / 'run'}", f"model.config={root / 'bert.json'}",
        f"data.tokenizer={tiny_model}", "data.normalize_whitespace=none", "optim.max_steps=4",
    ]  # fmt: skip
    assert run_ranks(words, 1, root / "printed.txt") == [0], (root / "printed.txt").read_text()
    return root / "run"


def test_onnxruntime_gives_the_scores_of_the_report(run, tmp_path, capsys):
    """Of batches of any size and length, from the file and the tokenizer alone."""
    for name in exporting._ONNX:
        pytest.importorskip(name, reason=f"no {name} here: pip install -e '.[onnx]'")
    import onnxruntime

    output = tmp_path / "out"
    assert export([str(run), str(output), "--merge", "--format", "onnx"]) == 0
    said = capsys.readouterr().out
    assert said.count("scores of 20 rows of the validation split differ by") == 2
    assert "onnxruntime" in (output / "README.md").read_text()
    lines = (run / "report" / "predictions.jsonl").read_text().splitlines()
    scores = [json.loads(line)["score"] for line in lines]
    assert max(scores) - min(scores) > 1e-3
    tokenizer = AutoTokenizer.from_pretrained(output)
    session = onnxruntime.InferenceSession(output / "model.onnx")
    found = []
    codes = [row["code"] for row in sample_rows("test", 20)]
    for chunk in (codes[:1], codes[1:8], codes[8:]):
        batch = tokenizer(chunk, padding=True, truncation=True, return_tensors="np")
        [logits_NC] = session.run(["logits"], dict(batch))
        chance_NC = np.exp(logits_NC.astype(float))
        found += (chance_NC / chance_NC.sum(1, keepdims=True))[:, 1].tolist()
    assert found == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "this is an adapter; add --merge"),
        (["--merge", "--dtype", "float16"], "writes float32, not --dtype float16"),
    ],
)
def test_what_has_no_onnx_is_refused(words, reason, run, tmp_path, monkeypatch, capsys):
    given = [str(run), str(tmp_path / "out"), "--format", "onnx", *words]
    monkeypatch.setattr(exporting, "find_spec", lambda name: object())
    assert export(given) == 2
    assert reason in capsys.readouterr().err
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    assert export(given) == 2
    assert "needs onnx, onnxscript, onnxruntime: pip install" in capsys.readouterr().err


def test_a_model_without_a_head_of_its_own_is_refused(run, tmp_path, monkeypatch):
    trained = open_trained(run)
    decoder = replace(trained, facts={**trained.facts, "pooling": "last"})
    monkeypatch.setattr(exporting, "find_spec", lambda name: object())
    wanted = exporting.Wanted(tmp_path / "out", merge=True, is_onnx=True)
    with pytest.raises(ConfigError, match="is for encoders that classify"):
        exporting._refuse(decoder, wanted)
    exporting._refuse(trained, wanted)
