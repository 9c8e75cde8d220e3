"""A trained model is a folder of its own: it is copied, opened and used without its run."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from rank_pool import run_ranks
from safetensors.torch import load_file, save_file

from data.batches.batch import collate
from data.prepared.prepare import read_split
from launcher.evaluate import main as evaluate_main
from launcher.export import main as export_main
from trainer.errors import ConfigError, ModelError
from trainer.run.build import alone
from trainer.run.trained import open_trained

pytestmark = pytest.mark.usefixtures("stock_pool")


@pytest.fixture(scope="module")
def base(saved_model, tmp_path_factory):
    """A base that no other test moves."""
    return shutil.copytree(saved_model, tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def finished(tiny_recipe, base, tmp_path_factory):
    """A run on a base with weights, chosen at its second validation."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = ["model.config=null", f"model.path={base}", "eval.threshold=recall=0.9"]
    words += ["optim.max_steps=4", "eval.interval=2"]
    assert run_ranks([str(tiny_recipe), f"run.output_dir={folder}", *words]) == [0]
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """The model alone, its name another one."""
    return shutil.copytree(finished / "model", tmp_path / "mine")


def scores(path):
    return [json.loads(line)["score"] for line in path.read_text().splitlines()]


def test_a_copied_model_scores_as_its_run_where_neither_run_nor_data_are(
    finished, copied, base, tiny_data, tmp_path, capsys
):
    moved = shutil.copytree(base, tmp_path / "elsewhere")
    words = [str(copied), str(tiny_data / "test.jsonl"), "--base", str(moved)]
    assert evaluate_main(words) == 0, capsys.readouterr().err
    own = scores(finished / "report" / "predictions.jsonl")
    assert len(set(own)) > 10
    assert "is without its run; give data.path=FOLDER" in " ".join(
        "".join(capsys.readouterr()).split()
    )
    found = scores(tmp_path / "mine.evaluated" / "report" / "predictions.jsonl")
    assert found == pytest.approx(own, abs=1e-6)
    report = json.loads((tmp_path / "mine.evaluated" / "report" / "test.json").read_text())
    of_run = json.loads((finished / "report" / "test.json").read_text())
    assert report["predictors"]["model"] == of_run["predictors"]["model"]
    assert report["threshold_source"] == of_run["threshold_source"]
    words += ["--output", str(tmp_path / "out" / "deep"), "--name", "again"]
    assert evaluate_main([*words, f"data.path={tiny_data}"]) == 0, capsys.readouterr().err
    whole = json.loads((tmp_path / "out" / "deep" / "report" / "again.json").read_text())
    assert whole["predictors"] == of_run["predictors"]  # the baselines learned from the given data


def test_commands_as_they_were_written_before_still_work(
    finished, base, tiny_data, tmp_path, capsys
):
    """adapter/, model.path= for a moved base, export RUN --merge without a folder."""
    assert (finished / "adapter").resolve() == finished / "model"
    moved = shutil.copytree(base, tmp_path / "elsewhere")
    file = str(tiny_data / "test.jsonl")
    words = [str(finished / "adapter"), file, f"model.path={moved}", "--name", "as_before"]
    assert evaluate_main(words) == 0, capsys.readouterr().err
    assert open_trained(finished / "adapter").folder == finished / "model"
    before = [str(finished), "--merge", "--data", file]
    assert export_main([*before, "--output", str(tmp_path / "o"), f"model.path={moved}"]) == 0
    assert (tmp_path / "o" / "model.safetensors").is_file()
    assert export_main(before) == 0, capsys.readouterr().err
    assert (finished / "merged" / "model.safetensors").is_file()
    shutil.rmtree(finished / "merged")
    assert export_main([str(finished), "--data", file]) == 2
    assert "give one new folder" in capsys.readouterr().err


def test_a_missing_or_another_base_is_named_with_both_digests(copied, finished, base, tmp_path):
    opened = open_trained(finished)
    said = json.loads((copied / "focaltune.json").read_text())["base"]
    assert (said["name"], said["path"]) == ("tiny", str(base))
    assert opened.config.model.path == str(base)
    other = shutil.copytree(base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    more = {name: 1.001 * weight for name, weight in weights.items()}
    save_file(more, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"other is not the base of .*mine.*{said['sha256']}"):
        open_trained(copied, other)
    with pytest.raises(ModelError, match=r"its base tiny is not at .*none; give its folder with"):
        open_trained(copied, tmp_path / "none")
    base.rename(base.with_name("moved"))
    try:
        with pytest.raises(ModelError, match=f"not at {base}; give its folder with --base"):
            open_trained(copied)
        again = open_trained(copied, base.with_name("moved"))
    finally:
        base.with_name("moved").rename(base)
    assert again.config.model.path == str(base.with_name("moved"))
    assert (again.run, opened.run) == (None, finished)


def test_the_model_says_how_inputs_and_answers_are_made_and_no_path_but_the_bases(
    finished, tiny_data
):
    text = (finished / "model" / "focaltune.json").read_text()
    facts = json.loads(text)
    assert str(tiny_data) not in text
    assert str(finished) not in text
    assert (facts["seq_length"], facts["long_functions"]) == (640, "truncate")
    assert (facts["end_token"], facts["classes"]) == (
        "<|endoftext|>", ["not vulnerable", "vulnerable"],
    )  # fmt: skip
    report = json.loads((finished / "report" / "test.json").read_text())
    assert facts["test"]["intervals"] == report["predictors"]["model"]["intervals"]
    assert facts["data"]["sha256"]["train"] == report["facts"]["sha256_train"]
    opened = open_trained(finished / "model")
    assert opened.decision.threshold == report["threshold"]
    assert opened.decision.rule == "recall=0.9"
    assert opened.decision.temperature == report["calibration"]["temperature"]
    ours, bases = (
        (folder / "tokenizer_config.json").read_bytes()
        for folder in (finished / "model", opened.config.model_folder)
    )
    assert ours == bases


def test_an_opened_model_scores_batches_without_torch_before_that(finished, tiny_data):
    opened = open_trained(finished)
    split, _ = read_split(
        [tiny_data / "test.jsonl"], "test", opened.config.data, opened.tokenizer,
        classes=opened.classes,
    )  # fmt: skip
    own = scores(finished / "report" / "predictions.jsonl")
    for examples in (None, split.examples):
        model = opened.load(alone(), examples)
        with torch.no_grad():
            logits = model(collate(split.examples, [[n] for n in range(len(own))]))
        found = logits.double().softmax(1)[:, 1].tolist()
        assert found == pytest.approx(own, abs=1e-6)
    code = (
        "import sys; from pathlib import Path; from trainer.run.trained import open_trained;"
        f" open_trained(Path({str(finished)!r}));"
        " assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_what_is_not_a_trained_model_is_named(finished, copied, tiny_data, tmp_path, capsys):
    def refused(path, code):
        assert evaluate_main([str(path), str(tiny_data / "test.jsonl")]) == code
        return " ".join(capsys.readouterr().err.split())

    assert "is not a folder; give a finished run" in refused(tmp_path / "none", 2)
    assert "holds no focaltune.json; give a finished run" in refused(tiny_data, 4)
    facts = copied / "focaltune.json"
    text = facts.read_text()
    facts.write_text(text.replace('"vulnerable"', '"vulnerabel"'))
    assert "focaltune.json has" in refused(copied, 4) or "does not match its sha256"
    facts.write_text(text.replace('"format": 1', '"format": 9'))
    assert "has format 9, this version reads 1" in refused(copied, 4)
    (copied / "MANIFEST.json").unlink()
    values = json.loads(text)
    values["decision"]["threshold"] = "0.5"
    facts.write_text(json.dumps(values))
    assert "which must be numbers" in refused(copied, 4)
    facts.write_text(text.replace('"recipe"', '"recipes"'))
    assert "focaltune.json cannot be used" in refused(copied, 4)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / ".focaltune-run").write_text("")
    assert "holds no trained model yet; let the run finish" in refused(begun, 4)


def test_a_run_of_an_older_version_is_refused_until_the_same_command_has_written_its_model(
    finished, tiny_data, tmp_path, capsys
):
    older = shutil.copytree(finished, tmp_path / "older", symlinks=True)
    (older / "adapter").unlink()
    (older / "model").rename(older / "adapter")
    recipe = older / "config.yaml"
    recipe.write_text(recipe.read_text().replace(str(finished), str(older)))
    test = str(tiny_data / "test.jsonl")
    assert evaluate_main([str(older), test]) == 4
    said = capsys.readouterr().err
    assert (
        f"holds adapter/ of an older version; train again, or run launcher/train.py {recipe}"
        in (" ".join(said.split()))
    )
    assert run_ranks([str(recipe)]) == [0]
    assert evaluate_main([str(older), test, "--name", "again"]) == 0, capsys.readouterr().err
    own = scores(finished / "report" / "predictions.jsonl")
    assert scores(older / "report" / "again_predictions.jsonl") == pytest.approx(own, abs=1e-6)


def test_a_model_on_random_weights_takes_its_runs_base_wherever_both_are(
    tiny_recipe, tiny_data, tmp_path, capsys
):
    folder = tmp_path / "first"
    words = [str(tiny_recipe), f"run.output_dir={folder}", "optim.max_steps=2"]
    assert run_ranks(words) == [0]
    moved = folder.rename(tmp_path / "moved")
    test = str(tiny_data / "test.jsonl")
    assert evaluate_main([str(moved), test, "--name", "again"]) == 0, capsys.readouterr().err
    own = scores(moved / "report" / "predictions.jsonl")
    assert scores(moved / "report" / "again_predictions.jsonl") == pytest.approx(own, abs=1e-6)
    lone = shutil.copytree(moved / "model", tmp_path / "lone" / "model")
    with pytest.raises(ModelError, match="give its folder with --base"):
        open_trained(lone)
    assert open_trained(lone, moved / "base").config.model.path == str(moved / "base")


def test_a_whole_model_and_a_merged_one_need_no_base(
    finished, tiny_recipe, tiny_data, base, tmp_path, capsys
):
    folder = tmp_path / "run"
    words = ["model.config=null", f"model.path={base}", "tuning.method=full", "optim.max_steps=2"]
    assert run_ranks([str(tiny_recipe), f"run.output_dir={folder}", *words]) == [0]
    whole = shutil.copytree(folder / "model", tmp_path / "whole")
    with pytest.raises(ConfigError, match="is a whole model and has no base; leave out --base"):
        open_trained(whole, base)
    merged = tmp_path / "merged"
    assert export_main([str(finished), str(merged), "--merge"]) == 0
    for model, run in ((whole, folder), (merged, finished)):
        assert open_trained(model).is_whole
        assert evaluate_main([str(model), str(tiny_data / "test.jsonl")]) == 0, model
        found = scores(model.with_name(f"{model.name}.evaluated") / "report" / "predictions.jsonl")
        own = scores(run / "report" / "predictions.jsonl")
        assert found == pytest.approx(own, abs=1e-5)
    capsys.readouterr()
