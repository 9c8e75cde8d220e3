"""Exports give the scores of the report in stock libraries, and are refused where they do not."""

import contextlib
import io
import json
import shutil

import pytest
import torch
from conftest import sample_rows, write_rows
from rank_pool import run_ranks
from stock_pool import exports_are_scored_here
from tokenizers import Tokenizer
from transformers import AutoTokenizer, pipeline

from launcher.evaluate import main as evaluate_main
from launcher.export import main as export_main
from trainer.errors import ModelError
from trainer.run.export_rows import export_rows
from trainer.run.stock_check import check_stock
from trainer.run.trained import open_trained

SCORES = 1e-5


def trained(recipe, folder, *words):
    printed = folder.with_suffix(".txt")
    command = [str(recipe), f"run.output_dir={folder}", *words]
    assert run_ranks(command, 1, printed) == [0], printed.read_text()[-2000:]
    return folder


@pytest.fixture(scope="module")
def bases(saved_model, tmp_path_factory):
    """The saved model; one whose pad token is its end token; one without any other special."""
    root = tmp_path_factory.mktemp("bases")
    plain, same, lone = (shutil.copytree(saved_model, root / n) for n in ("plain", "same", "lone"))
    for folder in (same, lone):
        config = json.loads((folder / "config.json").read_text()) | {"pad_token_id": 0}
        (folder / "config.json").write_text(json.dumps(config))
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text()) | {"pad_token": "<|endoftext|>"}
        path.write_text(json.dumps(settings))
    path = lone / "tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["id"] == 0]
    path.write_text(json.dumps(values))
    return {"plain": plain, "same": same, "lone": lone}


@pytest.fixture(scope="module", params=["plain", "same", "lone"])
def run(request, bases, tiny_recipe, tmp_path_factory):
    words = ["model.config=null", f"model.path={bases[request.param]}", "optim.max_steps=4"]
    return trained(tiny_recipe, tmp_path_factory.mktemp("runs") / request.param, *words)


@pytest.fixture(scope="module")
def exports(run):
    """Folders of one model and of the adapter, and what the commands printed.

    Those of the first run are compared in a process that is really started.
    """
    is_started = run.name == "plain"
    made = {}
    for name, words in (("whole", ["--merge"]), ("adapter", [])):
        output, said = run.with_name(f"{run.name}-{name}"), io.StringIO()
        with (
            contextlib.redirect_stdout(said),
            contextlib.nullcontext() if is_started else exports_are_scored_here(),
        ):
            assert export_main([str(run), str(output), *words]) == 0, said.getvalue()
        made[name] = output, said.getvalue()
    return made


def reported(run):
    """Codes of the test split and their scores, by the run."""
    report = (run / "report" / "predictions.jsonl").read_text().splitlines()
    scores = [json.loads(line)["score"] for line in report]
    assert max(scores) - min(scores) > 1e-3
    return [row["code"] for row in sample_rows("test", 20)], scores


def test_a_stock_pipeline_gives_the_scores_of_the_report(run, exports):
    output, said = exports["whole"]
    assert "scores of 20 rows of the validation split differ by" in said
    codes, scores = reported(run)
    classify = pipeline("text-classification", model=str(output), batch_size=4, top_k=None)
    found = [{one["label"]: one["score"] for one in each} for each in classify(codes)]
    assert [each["vulnerable"] for each in found] == pytest.approx(scores, abs=SCORES)
    assert found[0].keys() == {"not vulnerable", "vulnerable"}
    config, tokenizer = classify.model.config, classify.tokenizer
    assert config.label2id == {"not vulnerable": 0, "vulnerable": 1}
    assert config.problem_type == "single_label_classification"
    assert config.pad_token_id == tokenizer.pad_token_id
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("right", 640)
    pad = {"plain": "<|pad|>", "same": "<|pad|>"}.get(run.name, tokenizer.pad_token)
    assert tokenizer.pad_token == pad
    assert tokenizer.pad_token != tokenizer.eos_token
    whole, cut = (tokenizer("x = 1\n" * 900, truncation=t).input_ids for t in (False, True))
    assert (len(cut), cut[:-1], cut[-1]) == (640, whole[:639], tokenizer.eos_token_id)
    base = Tokenizer.from_file(str(run / "model" / "tokenizer.json"))
    assert tokenizer(codes[0]).input_ids == [*base.encode(codes[0]).ids, 0]


def test_a_stock_adapter_gives_the_scores_of_the_report(run, exports):
    from peft import AutoPeftModelForSequenceClassification

    output, said = exports["adapter"]
    assert "peft" in said
    assert "allowed for float32: 1e-05" in said
    codes, scores = reported(run)
    tokenizer = AutoTokenizer.from_pretrained(output)
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        output, num_labels=2, pad_token_id=tokenizer.pad_token_id
    ).eval()
    assert f"num_labels=2, pad_token_id={tokenizer.pad_token_id}" in (
        (output / "README.md").read_text()
    )
    with torch.no_grad():
        batch = tokenizer(codes, padding=True, truncation=True, return_tensors="pt")
        found = model(**batch).logits.double().softmax(1)[:, 1].tolist()
    assert found == pytest.approx(scores, abs=SCORES)


def test_an_export_is_a_model_that_our_commands_read(run, exports, tiny_data, tmp_path):
    for name, (folder, _) in exports.items():
        output = tmp_path / name
        words = [str(folder), str(tiny_data / "test.jsonl"), "--output", str(output)]
        assert evaluate_main(words) == 0
        report = (output / "report" / "predictions.jsonl").read_text().splitlines()
        found = [json.loads(line)["score"] for line in report]
        assert found == pytest.approx(reported(run)[1], abs=SCORES)


@pytest.mark.usefixtures("stock_pool")
@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_the_card_says_what_the_files_hold(run, tmp_path, capsys):
    output = tmp_path / "out"
    assert export_main([str(run), str(output), "--merge", "--dtype", "bfloat16"]) == 0
    assert "allowed for bfloat16: 5e-02" in capsys.readouterr().out
    page = (output / "README.md").read_text()
    facts = json.loads((output / "focaltune.json").read_text())
    report = json.loads((run / "report" / "test.json").read_text())
    assert facts["base"]["sha256"] in page
    assert facts["data"]["sha256"]["train"] in page
    auc = report["predictors"]["model"]
    low, high = auc["intervals"]["roc_auc"]
    assert f"{auc['metrics']['roc_auc']:.3f} [{low:.3f}, {high:.3f}]" in page
    assert f"threshold | {report['threshold']}" in page
    assert str(run) not in page
    config = json.loads((output / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_what_cannot_be_exported_is_refused(run, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    for words, said in (
        ([str(tmp_path / "there")], "exists; give a new folder"),
        ([], "give one new folder: launcher/export.py MODEL OUT"),
        ([str(tmp_path / "new"), "--dtype", "float16"], "add --merge"),
        ([str(tmp_path / "new"), "data.train=x"], "rows to compare are --data FILE"),
    ):
        assert export_main([str(run), *words]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_other_scores_are_an_error_and_so_is_a_folder_that_does_not_load(run, exports, tmp_path):
    opened = open_trained(run)
    output = shutil.copytree(exports["whole"][0], tmp_path / "out")
    rows = export_rows(opened, None)
    asked = {"folder": str(output), "way": "pipeline", "is_several": False}
    ours = [[0.5, 0.5]] * len(rows.texts)
    with pytest.raises(ModelError, match="the export is not the model; nothing was written"):
        check_stock(output, asked, rows, ours, "float32")
    (output / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="stock libraries do not score"):
        check_stock(output, asked, rows, ours, "float32")


@pytest.mark.usefixtures("stock_pool")
def test_rows_that_stock_cuts_otherwise_are_left_out_and_counted(
    bases, tiny_recipe, tiny_data, tmp_path, capsys
):
    words = ["model.config=null", f"model.path={bases['plain']}", "optim.max_steps=2"]
    words += ["data.seq_length=96", "data.long_functions=window"]
    run = trained(tiny_recipe, tmp_path / "run", *words)
    output = tmp_path / "out"
    test = tiny_data / "test.jsonl"
    assert export_main([str(run), str(output), "--merge", "--data", str(test)]) == 0
    said = capsys.readouterr().out
    assert "longer ones left out" in said
    page = (output / "README.md").read_text()
    assert "cuts off what is above 96 tokens" in page


@pytest.mark.usefixtures("stock_pool")
def test_cutting_the_head_and_collapsing_blanks_are_stocks_too(
    bases, tiny_recipe, tiny_data, tmp_path, capsys
):
    words = ["model.config=null", f"model.path={bases['plain']}", "optim.max_steps=2"]
    words += ["data.seq_length=64", "data.long_functions=truncate_left"]
    words += ["data.normalize_whitespace=collapse"]
    run = trained(tiny_recipe, tmp_path / "run", *words)
    output = tmp_path / "out"
    assert export_main([str(run), str(output), "--merge"]) == 0, capsys.readouterr().err
    assert "left out" not in "".join(capsys.readouterr())
    codes, scores = reported(run)
    assert any("\n    " in code for code in codes)
    classify = pipeline("text-classification", model=str(output), batch_size=4, top_k=None)
    found = [
        {one["label"]: one["score"] for one in each} for each in classify(codes, truncation=True)
    ]
    assert [each["vulnerable"] for each in found] == pytest.approx(scores, abs=SCORES)
    tokenizer = classify.tokenizer
    blanks = "".join(map(chr, range(0x3001)))  # all that str.split() takes are among them
    odd = f" a{blanks}b\u2028"
    assert tokenizer(odd).input_ids == tokenizer(" ".join(odd.split())).input_ids
    assert tokenizer.backend_tokenizer.normalizer.normalize_str(odd) == " ".join(odd.split())
    words = [str(output), str(tiny_data / "test.jsonl"), "--output", str(tmp_path / "again")]
    assert evaluate_main(words) == 0  # our code reads the tokenizer as before
    report = (tmp_path / "again" / "report" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["score"] for line in report] == pytest.approx(scores, abs=SCORES)


@pytest.mark.usefixtures("stock_pool")
def test_a_language_model_says_where_answers_end_and_how_questions_are_written(
    bases, tiny_recipe, tmp_path, capsys
):
    import yaml
    from transformers import AutoModelForCausalLM

    for split, count in (("train", 8), ("valid", 4), ("test", 4)):
        rows = [{"prompt": f"{split} {n}", "completion": " ".join("123"[: n % 3 + 1])}
                for n in range(count)]  # fmt: skip
        write_rows(tmp_path / f"{split}.jsonl", rows)
    values = yaml.safe_load(tiny_recipe.read_text())
    values |= {"task": {"name": "instruction"}, "loss": {}, "model": {"path": str(bases["plain"])}}
    values["data"] |= {"path": str(tmp_path)}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    run = trained(recipe, tmp_path / "run", "optim.max_steps=2")
    for name, words in (("whole", ["--merge"]), ("adapter", [])):
        assert export_main([str(run), str(tmp_path / name), *words]) == 0, capsys.readouterr().err
        assert "mean losses of 4 rows" in capsys.readouterr().out
    output = tmp_path / "whole"
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.generation_config.eos_token_id == 0
    tokenizer = AutoTokenizer.from_pretrained(output)
    asked = [{"role": "user", "content": "count to 3"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False) == "Question: count to 3\n\nAnswer:"
    said = [*asked, {"role": "assistant", "content": "1"}, *asked]
    assert tokenizer.apply_chat_template(said, tokenize=False) == (
        "Question: count to 3\n\nAnswer: 1<|endoftext|>\n\nQuestion: count to 3\n\nAnswer:"
    )
