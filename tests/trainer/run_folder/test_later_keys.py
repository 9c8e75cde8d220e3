"""A run of an older version continues: keys that came later are read as their defaults."""

import copy

from trainer.config.recipe import load_run_config
from trainer.run_folder.resume import DECISIVE, config_changes


def test_a_saved_recipe_without_the_keys_at_their_defaults_differs_in_nothing(base):
    given = load_run_config(base).to_json()
    saved = copy.deepcopy(given)
    for section, key in (("model", "config"), ("data", "path"), ("optim", "epochs")):
        saved[section] = {key: given[section][key]}  # all that the recipe says
    for section in ("task", "tuning", "loss"):
        saved[section] = {}
    assert sum(len(given[section]) for section in DECISIVE) > 40
    assert config_changes(saved, given) == []
    saved["data"]["split"] = {"valid": 0.2, "test": None, "by": "group"}
    assert [change.partition(":")[0] for change in config_changes(saved, given)] == ["data.split"]
