"""Hosts for the tests here; where there can be none, the tests skip and say why."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster.virtual_hosts import VirtualHosts, missing


@pytest.fixture(scope="session")
def two_hosts(tmp_path_factory) -> Iterator[VirtualHosts]:
    if reason := missing():
        pytest.skip(reason)
    with VirtualHosts(tmp_path_factory.mktemp("cluster") / "state", 2) as hosts:
        yield hosts


@pytest.fixture(scope="session")
def shared_recipe(two_hosts, tiny_data, tiny_model, tiny_recipe) -> Path:
    """The tiny recipe, its data and its model, where both hosts see them."""
    folder = two_hosts.shared
    shutil.copytree(tiny_data, folder / "data")
    shutil.copytree(tiny_model, folder / "model")
    values = yaml.safe_load(tiny_recipe.read_text())
    values["model"]["config"] = str(folder / "model")
    values["data"]["path"] = str(folder / "data")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    return recipe
