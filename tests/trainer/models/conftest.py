"""Folders of weights as users have them, and recipes that name them."""

import pytest
import torch
import transformers
from head_cases import KINDS

from trainer.config.recipe import load_run_config


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder of weights of each kind, as a user has it; made when it is wanted."""
    made = {}

    def folder_of(kind):
        if kind not in made:
            name, values, auto, _, _ = KINDS[kind]
            torch.manual_seed(1)
            settings = transformers.AutoConfig.for_model(name, **values)
            made[kind] = tmp_path_factory.mktemp(kind)
            getattr(transformers, auto).from_config(settings).save_pretrained(made[kind])
        return made[kind]

    return folder_of


@pytest.fixture
def config_of(tiny_recipe, tiny_model):
    def config(folder, *more):
        settled = ["engine.precision=fp32", "model.attention=segment_sdpa", "data.seq_length=200"]
        places = ["model.config=null", f"model.path={folder}", f"data.tokenizer={tiny_model}"]
        return load_run_config(tiny_recipe, [*places, *settled, *more])

    return config
