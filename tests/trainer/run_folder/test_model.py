"""The adapter of a run loads in plain peft and transformers, in a process of its own."""

import json
import shutil

from rank_pool import run_ranks
from stock_peft import assert_stock_scores_are_the_reports

from data.text.own_template import own_template
from data.text.tokenization import normalize_whitespace
from trainer.config.recipe import load_run_config
from trainer.run_folder.model import complete_model

LOAD = """
base = AutoModelForSequenceClassification.from_pretrained(base_name, num_labels=2)
model = PeftModel.from_pretrained(base, adapter).eval()
"""


def test_stock_peft_gives_the_scores_of_the_report(tiny_recipe, tiny_data, tiny_model, tmp_path):
    printed, folders = tmp_path / "printed", []
    for preset, backend in (("cpu_zero1", "fused"), ("cpu_zero1", "peft"), ("cpu_zero3", "fused")):
        folders.append(tmp_path / f"{preset}-{backend}")
        command = [
            str(tiny_recipe), f"run.output_dir={folders[-1]}", f"engine.preset={preset}",
            f"tuning.lora_backend={backend}",
        ]  # fmt: skip
        assert run_ranks(command, 2, printed) == [0, 0], printed.read_text()[-3000:]
    rows = [json.loads(line) for line in (tiny_data / "test.jsonl").read_text().splitlines()]
    codes = [normalize_whitespace(row["code"], "none") for row in rows]
    assert_stock_scores_are_the_reports(
        LOAD, folders, tiny_model / "tokenizer.json", codes, tmp_path
    )


def test_every_chat_template_of_the_tokenizer_goes_with_a_saved_model(
    tiny_recipe, tiny_model, tmp_path
):
    tokenizer, saved = tmp_path / "tokenizer", tmp_path / "saved"
    shutil.copytree(tiny_model, tokenizer)
    named = {"chat_template.jinja": "a", "additional_chat_templates/tool_use.jinja": "b"}
    (tokenizer / "additional_chat_templates").mkdir()
    saved.mkdir()
    shutil.copyfile(tiny_model / "config.json", saved / "config.json")
    for name, template in named.items():
        (tokenizer / name).write_text(template)
    complete_model(saved, load_run_config(tiny_recipe, [f"data.tokenizer={tokenizer}"]))
    assert {name: (saved / name).read_text() for name in named} == named
    assert own_template(saved, has_tools=True)[0] == "b"
    assert (saved / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
