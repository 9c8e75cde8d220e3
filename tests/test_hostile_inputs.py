"""Inputs that mean harm, or look so: refused at once, by file and place, in few words."""

import errno
import json
import shutil
import time

import pytest
from conftest import SAMPLES

from data.errors import DataError, parsing
from trainer.architectures.families import model_shape
from trainer.config.recipe import load_run_config
from trainer.config.sections import ModelSection
from trainer.errors import ConfigError, ModelError
from trainer.models.files import read_config

SOUND = """\
run: {output_dir: runs/x}
model: {config: data/samples/model}
data: {path: data/samples}
optim: {epochs: 1}
"""
# 10 lines of 10 aliases each: 10,000,000,000 values
LAUGHS = "x: &l0 [a]\n" + "".join(
    f"y{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 11)
)
RECIPES = {
    "nested-aliases": (LAUGHS, "line 9: more than 10000 values"),
    "an-alias-in-itself": ("x: &a [*a]\n", "line 5: 'a' holds itself"),
    "merge-key": ("x: {<<: {a: 1}}\n", "line 5: '<<' (str) is not YAML"),
    "nested-brackets": (f"x: {'[' * 3000}{']' * 3000}\n", "line 5: more than 10000 values"),
    "many-values": ("x: [" + "1, " * 12_000 + "1]\n", "line 5: more than 10000 values"),
    "above-a-mebibyte": ("# " + "x" * (1 << 20) + "\n", "recipe.yaml: above 1,048,576 bytes"),
    "no-such-day": ("x: 2020-13-45\n", "line 5: '2020-13-45' (str) is not YAML (month must be"),
    "digits": ("x: " + "9" * 5000 + "\n", "line 5: '9999999999"),
    "unknown-tag": ("x: !!python/object:os.system ls\n", "line 5: 'ls' (str) is not YAML"),
    "wrong-tag": ("x: !!int abc\n", "line 5: 'abc' (str) is not YAML"),
    "list-as-key": ("? [a]\n: 1\n", "line 5: a YAML key is not a string"),
    "latin-1": ("x: \udce9\n", "recipe.yaml: line 5: not UTF-8 (b'\\xe9"),
}  # fmt: skip
VALUES = {
    "data.path='~nosuchuser/x'": "data.path: '~nosuchuser/x' (str) is not a path",
    'data.path="/x\\0y"': "data.path: '/x\\x00y' (str) is not a path",
    f"data.path=/{'x' * 300}": "is not a path",
    "data.cache_dir=''": "data.cache_dir: '' (str) is not a path (it is empty)",
    "tuning.target_modules=[]": "at least 1 item",
    "tuning.lora_alpha=1e308": "tuning.lora_alpha: Input should be less than",
    f"tuning.lora_r={'9' * 4000}": "tuning.lora_r, on the command line: line 1: '999",
    f"tuning.lora_r=0x{'f' * 5000}": "is not YAML (a number above 64 bits)",
    f"optim.lr={'x' * 100_000}": "optim.lr: Input should be a valid number, found 'xxx",
    f"{'k' * 100_000}.x=1": "unknown key kkk",
}  # fmt: skip


def refused(recipe, *overrides):
    begin = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_run_config(recipe, overrides)
    assert time.monotonic() - begin < 5
    assert len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe_is_refused_with_its_file_and_line(name, tmp_path):
    more, expected = RECIPES[name]
    path = tmp_path / "recipe.yaml"
    path.write_bytes((SOUND + more).encode("utf-8", "surrogateescape"))
    message = refused(path)
    assert message.startswith(str(path))
    assert expected in message


@pytest.mark.parametrize(("override", "expected"), VALUES.items(), ids=range(len(VALUES)))
def test_a_hostile_value_is_refused_with_its_key(override, expected, tmp_path):
    (tmp_path / "recipe.yaml").write_text(SOUND)
    assert expected in refused(tmp_path / "recipe.yaml", override)


def test_an_alias_that_repeats_little_is_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        SOUND.replace("epochs: 1", "epochs: &n 1") + "log: {interval: *n}\n"
    )
    assert load_run_config(tmp_path / "recipe.yaml").log.interval == 1


CONFIGS = {
    "a-list": ([], "must hold a JSON object, found '[]'"),
    "a-text-for-a-size": ({"vocab_size": "2048"}, "vocab_size: Input should be a valid integer"),
    "no-heads": ({"n_head": 0}, "n_head: Input should be greater than or equal to 1, found 0"),
    "negative": ({"n_embd": -8}, "n_embd: "),
    "half-a-layer": ({"n_layer": 1.5}, "n_layer: "),
    "huge": ({"vocab_size": 10**30}, "vocab_size: "),
    "a-type-that-is-no-text": ({"model_type": ["gpt2"]}, "model_type: Input should be a valid s"),
    "a-number-for-classes": ({"architectures": 0.5}, "architectures: Input should be a valid l"),
    "a-text-for-an-id": ({"eos_token_id": "x"}, "eos_token_id.int: Input should be a valid int"),
    "no-number": ({"embd_pdrop": float("nan")}, "not JSON (it holds NaN"),
    "infinite": ({"attn_pdrop": float("inf")}, "attn_pdrop: "),
    "nested": ("[" * 3000 + "]" * 3000, "not JSON (maximum recursion depth exceeded"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_json_that_no_model_can_have_is_refused_before_a_model_is_built(name, tmp_path):
    given, expected = CONFIGS[name]
    path = tmp_path / "config.json"
    shutil.copy(SAMPLES / "model" / "config.json", path)
    if isinstance(given, dict):
        given = json.loads(path.read_text()) | given
    path.write_text(given if isinstance(given, str) else json.dumps(given))
    with pytest.raises(ModelError) as caught:
        read_config(ModelSection(config=str(tmp_path)))
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_sizes_that_do_not_fit_each_other_are_an_error_of_the_model():
    with pytest.raises(ModelError, match="model_type 'llama'"):
        model_shape({"model_type": "llama", "intermediate_size": [4, 8]})
    with pytest.raises(ModelError, match=r"fetch config\.json again"):
        model_shape({"model_type": {}})


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), OSError(errno.EINVAL, "x")])
def test_the_boundary_names_file_and_remedy_whatever_a_library_raises(error):
    says = r"^a\.zip: damaged \(.+\); fetch it again$"
    with (
        pytest.raises(DataError, match=says) as caught,
        parsing("a.zip: damaged", DataError, "fetch it again"),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [ModelError("x"), AssertionError(), NameError(), OSError(errno.EIO, "x", "a.zip")]
)
def test_errors_of_ours_of_the_machine_and_defects_pass_the_boundary(error):
    with pytest.raises(type(error)) as caught, parsing("a.zip", DataError, "fetch it again"):
        raise error
    assert caught.value is error


def test_a_fault_of_the_disk_stays_one_and_names_the_file():
    with (
        pytest.raises(OSError, match=r"x: 'a\.zip'"),
        parsing("a.zip", DataError, "fetch it again"),
    ):
        raise OSError(errno.EIO, "x")
