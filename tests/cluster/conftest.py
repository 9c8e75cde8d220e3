"""Hosts for the tests here; where there can be none, the tests skip and say why."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster import virtual_hosts
from cluster.hosts import Hosts, missing


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory) -> Iterator[virtual_hosts.VirtualHosts]:
    if reason := virtual_hosts.missing():
        pytest.skip(reason)
    with virtual_hosts.VirtualHosts(tmp_path_factory.mktemp("cluster") / "state", 2) as hosts:
        yield hosts


@pytest.fixture(scope="session")
def shared(tmp_path_factory, tiny_data, tiny_model, tiny_recipe) -> Path:
    """A folder that all hosts share, with data, model and recipe.yaml in it."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(tiny_data, folder / "data")
    shutil.copytree(tiny_model, folder / "model")
    values = yaml.safe_load(tiny_recipe.read_text())
    values["model"]["config"] = str(folder / "model")
    values["data"]["path"] = str(folder / "data")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture(scope="session")
def hosts(tmp_path_factory, shared) -> Iterator[Hosts]:
    """node0 and node1, up; a test that takes one down brings it up again."""
    if reason := missing():
        pytest.skip(reason)
    lab = Hosts(tmp_path_factory.mktemp("hosts"), shared, 2)
    yield lab
    lab.down()
