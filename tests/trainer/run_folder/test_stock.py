"""Stop tokens and chat templates of an exported language model, against our own rendering."""

import json
import shutil

import pytest
from conftest import SAMPLES
from transformers import AutoTokenizer

from data.records import Conversation, Turn
from data.text.templates import TEMPLATES, render
from data.text.tokenizer import CodeTokenizer
from trainer.config.recipe import load_run_config
from trainer.run_folder.stock import settle_generation

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (("user", "count to 3 "), ("assistant", "1 2 3"), ("user", "and 2"), ("assistant", "1 2"))


@pytest.fixture
def folder(tmp_path):
    """The embedded tokenizer with the tokens of ChatML."""
    copy = shutil.copytree(SAMPLES / "model", tmp_path / "tokenizer")
    values = json.loads((copy / "tokenizer.json").read_text())
    like = values["added_tokens"][0]
    free = 1 + max(values["model"]["vocab"].values())
    for number, token in enumerate(("<|im_start|>", "<|im_end|>"), free):
        values["added_tokens"].append(like | {"id": number, "content": token})
    (copy / "tokenizer.json").write_text(json.dumps(values))
    return copy


def config(recipe, template):
    return load_run_config(recipe, ["task.name=instruction", f"data.template={template}"])


def ends(folder):
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def test_generation_stops_at_the_end_token_and_where_the_chat_template_ends_a_turn(folder, base):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": CHATML}))
    tokenizer = CodeTokenizer(folder)
    end_of_turn = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|im_end|>")
    (folder / "generation_config.json").write_text('{"eos_token_id": 7, "temperature": 0.5}')
    settle_generation(folder, tokenizer, config(base, "auto"), ["chat"])
    assert ends(folder) == [0, 7, end_of_turn]
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.5
    assert not (folder / "chat_template.jinja").exists()


def test_a_text_model_stops_at_the_end_token_alone(folder, base):
    settle_generation(folder, CodeTokenizer(folder), config(base, "auto"), ["text"])
    assert ends(folder) == 0
    assert not (folder / "chat_template.jinja").exists()


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_named_template_is_written_as_training_renders_it(name, system, folder, base):
    tokenizer = CodeTokenizer(folder)
    settle_generation(folder, tokenizer, config(base, name), ["chat"])
    turns = ((("system", "Be brief."),) if system else ()) + TURNS
    record = Conversation("r", tuple(Turn(*turn) for turn in turns), "r", "r", "chat")
    [spans] = render(record, name, "answers")
    ours = "".join(span.text + tokenizer.end_token * span.ends for span in spans)
    messages = [{"role": role, "content": content} for role, content in turns]
    stock = AutoTokenizer.from_pretrained(folder)
    assert stock.apply_chat_template(messages, tokenize=False) == ours
    asked = stock.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert ours.startswith(asked)
    assert ours[len(asked) :].strip() == f"1 2{tokenizer.end_token}"
