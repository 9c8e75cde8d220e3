"""Virtual hosts for the tests here; where there can be none, the tests skip and say why."""

from collections.abc import Iterator

import pytest
from cluster.virtual_hosts import VirtualHosts, missing


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory) -> Iterator[VirtualHosts]:
    if reason := missing():
        pytest.skip(reason)
    with VirtualHosts(tmp_path_factory.mktemp("cluster") / "state", 2) as hosts:
        yield hosts
