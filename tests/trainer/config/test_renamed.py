"""A key of an older version is answered in a recipe, and read in a run that was saved with it."""

import pytest
import yaml

from trainer.config.recipe import load_run_config
from trainer.config.renamed import RENAMED, with_current_keys
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError

FIELDS = RunConfig.model_fields


def is_key(name):
    section, _, key = name.partition(".")
    return section in FIELDS and key in FIELDS[section].annotation.model_fields


@pytest.mark.parametrize("old", RENAMED)
def test_an_older_key_names_the_key_that_replaced_it(base, old):
    assert not is_key(old)
    assert is_key(RENAMED[old]) or " " in RENAMED[old]
    with pytest.raises(ConfigError) as caught:
        load_run_config(base, [f"{old}=true"])
    new = RENAMED[old]
    said = f"{old} is gone: {new}" if " " in new else f"{old} was renamed: write {new}"
    assert str(caught.value) == said
    assert caught.value.exit_code == 2


@pytest.fixture
def without_prompts(monkeypatch):
    monkeypatch.setitem(RENAMED, "eval.num_prompts", "list them in eval.prompts")


def test_a_key_that_is_gone_says_what_to_do(base, without_prompts):
    with pytest.raises(ConfigError, match=r"eval\.num_prompts is gone: list them in eval\.prompts"):
        load_run_config(base, ["eval.num_prompts=3"])


def test_a_saved_recipe_is_read_under_the_keys_of_today(base, tmp_path, without_prompts):
    values = load_run_config(base, ["eval.window_score=mean"]).to_json()
    del values["replication"]
    values["loss"]["detach_modulator"] = values["eval"]["compat_population"] = True
    values["eval"]["num_prompts"] = 3
    values["log"]["tensorboard"] = values["log"].pop("trackers") == []
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"loss\.detach_modulator was renamed"):
        load_run_config(saved)  # a user's file that happens to have the name
    (tmp_path / "checkpoints").mkdir()
    config = load_run_config(saved)
    assert config.replication.detach_modulator
    assert config.replication.compat_population
    assert config.eval.window_score == "mean"
    assert config.log.trackers == ["tensorboard"]
    assert values["loss"]["detach_modulator"]  # what was read is left as it is
    assert with_current_keys(config.to_json()) == config.to_json()
