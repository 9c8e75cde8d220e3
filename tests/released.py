"""Data sets and released outputs of the study, which lie beside the repository."""

import gzip
import json
from functools import cache

import pytest
from conftest import REPOSITORY

DATA = REPOSITORY.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no data sets beside the repository")


@cache
def lines(path):
    """Rows of a file of JSON lines."""
    opened = gzip.open if path.endswith(".gz") else open
    with opened(DATA / path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


@cache
def released(name):
    """What the study published of one of its models."""
    path = DATA / "astraios_outputs" / f"generations-{name}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))
