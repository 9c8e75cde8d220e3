"""Records written to disk come back as they were."""

import pytest

from data.prepared.table import RecordTable, RecordWriter
from data.records import CodeSample

SAMPLES = [
    CodeSample(
        f"id {n}",
        f"int \u00e9{n};\x00\n",
        n % 2,
        f"f:{n}",
        cwe="CWE-1",
        commit=str(n // 3),
        cve="x",
    )
    for n in range(10)
]


def test_records_come_back_equal_whole_by_index_and_by_slice(tmp_path):
    with RecordWriter(tmp_path / "records.arrow", CodeSample) as writer:
        writer.append(SAMPLES[:7])
        writer.append(SAMPLES[7:])
    table = RecordTable(tmp_path / "records.arrow", CodeSample)
    assert list(table) == SAMPLES
    assert [table[n] for n in (0, 6, 7, 9)] == [SAMPLES[n] for n in (0, 6, 7, 9)]
    assert (table[-1], table[2:8:2]) == (SAMPLES[-1], SAMPLES[2:8:2])
    assert table.targets.tolist() == [s.target for s in SAMPLES]
    assert table.column("commit").to_pylist() == [s.commit for s in SAMPLES]


def test_an_index_beyond_the_end_is_an_error(tmp_path):
    with RecordWriter(tmp_path / "records.arrow", CodeSample) as writer:
        writer.append(SAMPLES)
    with pytest.raises(IndexError, match="record 10 of 10"):
        RecordTable(tmp_path / "records.arrow", CodeSample)[10]
