"""How published sets are stored: databases, nested rows, index files, patterns, labelled pairs."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from dataset_files import FORMATS, jsonl_bytes, read, refused, tar, zipped

from data.config import DataConfig
from data.errors import MappingError
from data.readers import ReadFacts, read_records

ROWS = [("int a;", 0, "f"), ("int b;", 1, "g"), ("int c;", 1, "h")]


def database(path, *statements, rows=ROWS):
    with sqlite3.connect(path) as made:
        made.execute("create table method (code text, target integer, name text)")
        made.executemany("insert into method values (?, ?, ?)", rows)
        for statement in statements:
            made.execute(statement)
    made.close()
    return path


def found(samples):
    return [(sample.code, sample.target) for sample in samples]


def test_the_only_table_of_a_database_is_read_and_nothing_is_written_beside_it(tmp_path):
    path = database(tmp_path / "set.db")
    path.chmod(0o444)
    before = path.read_bytes()
    samples = read(path)
    assert found(samples) == [row[:2] for row in ROWS]
    assert [sample.origin for sample in samples] == [f"set.db:row {n}" for n in (1, 2, 3)]
    assert [each.name for each in tmp_path.iterdir()] == ["set.db"]
    assert path.read_bytes() == before


def test_a_query_joins_tables_and_names_columns(tmp_path):
    more = ("create table fix (name text, cve text)", "insert into fix values ('g', 'CVE-1')")
    path = database(tmp_path / "train.sqlite", *more)
    refused(path, ["the tables ['fix', 'method']", "set data.query to a SELECT"])
    query = "SELECT m.code AS code, target, cve FROM method m JOIN fix USING (name)"
    [sample] = read(path, query=query)
    assert (sample.code, sample.target, sample.cve) == ("int b;", 1, "CVE-1")
    read_only = "SELECT code, target, json_group_array(name) AS cwe FROM method GROUP BY target"
    assert [sample.cwe for sample in read(path, query=read_only)] == ["f", "g, h"]


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("SELECT code FROM other", "no such table: other"),
        ("SELEKT 1", "syntax error"),
        ("DELETE FROM method", "not authorized"),
        ("ATTACH 'beside.db' AS b", "not authorized"),
        ("PRAGMA journal_mode = wal", "not authorized"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("SELECT code, code FROM method", "the query names ['code'] twice"),
        ("SELECT code FROM method", "no field 'target'"),
    ],
)
def test_a_query_that_does_not_only_read_functions_is_refused(tmp_path, monkeypatch, query, part):
    monkeypatch.chdir(tmp_path)
    refused(database(tmp_path / "train.db"), [part], query=query)
    assert [each.name for each in tmp_path.iterdir()] == ["train.db"]


def test_a_database_read_in_part_by_one_thread_is_closed_by_another(tmp_path):
    rows = read_records(database(tmp_path / "set.db"), "train", DataConfig())
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(next, rows).result().code == "int a;"
    rows.close()  # what garbage collection does wherever it happens
    assert next(rows, None) is None


def test_a_database_in_an_archive_or_compressed_is_read_in_memory(tmp_path):
    path = database(tmp_path / "made.db", "PRAGMA user_version = 1")
    content = bytearray(path.read_bytes())
    content[18:20] = b"\2\2"  # as in write-ahead mode
    for name, inside in (("a.tar", tar(("train.parquet", bytes(content)))),):
        (tmp_path / name).write_bytes(inside)
        assert found(read(tmp_path / name)) == [row[:2] for row in ROWS]


def test_changes_that_are_not_in_the_file_yet_are_not_passed_over(tmp_path):
    path = database(tmp_path / "train.db")
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = wal")
    writer.execute("insert into method values ('int d;', 0, 'i')")
    writer.commit()
    refused(path, ["train.db-wal holds changes", "close the program"])
    writer.close()
    assert len(read(path)) == 4


def test_damage_types_and_bad_text_of_a_database_have_their_place(tmp_path):
    rows = [*ROWS, (b"\xff", 1, "blob")]
    path = database(tmp_path / "train.db", rows=rows)
    refused(path, ["train.db:row 4: 'code' must be text", "(bytes)"])
    assert len(read(path, max_bad_rows=1)) == 3
    path.write_bytes(path.read_bytes()[:5000])
    refused(path, ["train.db: the data is damaged or cut off"])
    other = tmp_path / "train.jsonl"
    other.write_bytes(jsonl_bytes([{"code": "a", "target": 0}]))
    refused(other, ["data.query is set, but this is jsonl"], query="SELECT 1")
    refused(other, ["data.format=sqlite, but the content is jsonl"], format="sqlite")


def test_a_query_without_end_is_taken_for_a_bomb(tmp_path):
    query = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        " SELECT hex(zeroblob(500000)) AS code, 1 AS target FROM n"
    )
    refused(database(tmp_path / "train.db"), ["decompression bomb"], query=query)


PAIRS = {"before": "func_before", "after": "func_after", "target": "vul"}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_label_beside_a_pair_keeps_the_functions_that_no_fix_changed(tmp_path, kind):
    rows = [("a", "a", 0), ("b1", "b2", 1), ("c", "c", 1), ("", "d", 0)]
    path, facts = tmp_path / f"train.{kind}", ReadFacts()
    named = [dict(zip(("func_before", "func_after", "vul"), row, strict=True)) for row in rows]
    path.write_bytes(FORMATS[kind](named))
    samples = read(path, facts=facts, fields=PAIRS)
    assert found(samples) == [("a", 0), ("b1", 1), ("b2", 0), ("d", 0)]
    assert facts.num_identical == 1
    assert [s.commit for s in samples] == ["", samples[1].commit, samples[1].commit, ""]
    assert samples[1].commit
    unlabelled, more = {k: v for k, v in PAIRS.items() if k != "target"}, ReadFacts()
    named += [{"func_before": "e", "func_after": "e", "vul": 0}]
    path.write_bytes(FORMATS[kind](named))
    assert found(read(path, facts=more, fields=unlabelled)) == [("b1", 1), ("b2", 0), ("d", 0)]
    assert "3 of 5 rows are dropped, because their fix changed nothing" in more.warnings[0]
    with pytest.raises(MappingError, match="beside before and after"):
        read(path, fields=PAIRS | {"code": "x"})


NESTED = {
    "cve_id": "CVE-1",
    "cwe_id": ["CWE-20"],
    "details": [
        {
            "file": "a.c",
            "functions": [{"function": "f", "target": 1}, {"function": "g", "target": 0}],
        },
        {"id": "not of its functions", "file": "b.c", "functions": []},
        {"file": "c.c", "functions": {"function": "h", "target": 0}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_lists_in_a_row_become_rows_with_the_fields_around_them(tmp_path, kind):
    path, facts = tmp_path / f"train.{kind}", ReadFacts()
    empty = {"cve_id": "CVE-2", "cwe_id": []}
    path.write_bytes(FORMATS[kind]([NESTED, empty, NESTED]))
    config = {"unroll": ["details", "functions"], "fields": {"code": "function"}}
    samples = read(path, facts=facts, **config)
    assert found(samples) == [("f", 1), ("g", 0), ("h", 0)] * 2
    assert {(sample.cve, sample.cwe) for sample in samples} == {("CVE-1", "CWE-20")}
    assert len({sample.id for sample in samples}) == 6
    assert samples[1].origin == f"train.{kind}:{'' if kind == 'jsonl' else 'element '}1.2"
    assert (facts.num_rows, facts.num_empty) == (7, 1)
    assert facts.ignored_fields == {"file"}
    path.write_bytes(FORMATS[kind]([{"details": ["x"]}]))
    refused(path, ["'details' must be a list of objects"], **config)


def test_an_index_file_chooses_functions_by_id_or_place_and_pairs_them(tmp_path):
    functions = tmp_path / "function.json"
    rows = [{"func": code, "target": target} for code, target, _ in ROWS]
    functions.write_bytes(FORMATS["json"](rows))
    index = tmp_path / "train.txt"
    index.write_text("2\n\n0\n")
    config = {"functions": str(functions), "fields": {"code": "func"}}
    samples = read(index, **config)
    assert found(samples) == [("int c;", 1), ("int a;", 0)]
    assert samples[0].origin == "train.txt:1"
    functions.write_bytes(jsonl_bytes([{**row, "idx": f"i{n}"} for n, row in enumerate(rows)]))
    index.write_text("i1\n")
    assert [sample.id for sample in read(index, **config)] == ["i1"]
    for line, part in (("i9", "no function 'i9'"), ("i1 i2", "or two ids and a label")):
        index.write_text(f"i1\n{line}\n")
        refused(index, ["train.txt:2: ", part], **config)


def test_the_functions_of_an_index_file_are_part_of_what_was_prepared(tmp_path, tiny_model):
    from data.prepared.prepare import data_digests, open_splits

    functions = tmp_path / "data.jsonl"
    config = {"functions": str(functions), "cache_dir": str(tmp_path / "cache")}
    for n, name in enumerate(("train", "valid", "test")):
        config[name] = str(tmp_path / f"{name}.txt")
        (tmp_path / f"{name}.txt").write_text(f"{2 * n}\n{2 * n + 1}\n")
    seen = []
    for suffix in ("", " "):
        rows = [{"code": f"int f{n};{suffix}", "target": n % 2} for n in range(6)]
        functions.write_bytes(jsonl_bytes(rows))
        given = DataConfig.model_validate(config)
        prepared = open_splits(given, tiny_model)
        assert prepared.digests == data_digests(given, tiny_model, language=False)
        seen.append((prepared.digests["functions"], prepared.splits["test"].samples[0].code))
    assert [code for _, code in seen] == ["int f4;", "int f4; "]
    assert seen[0][0] != seen[1][0]


GADGETS = """1 CVE-2031-1/vdu.c memcpy 12
char a[4];
memcpy(a, b, 9);
1
---------------------------------
2 148889/good.c strcpy 7
strcpy(a, b);
0
---------------------------------
"""
GADGET = (
    r"^\d+ (?P<commit>[^/\n]+)/.* (?P<function_name>\S+) \d+\n(?P<code>(?:.*\n)+?)"
    r"(?P<target>[01])\n-{9,}$"
)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_matches_of_a_text_are_rows(tmp_path, ending):
    path, facts = tmp_path / "cwe119_cgd.txt", ReadFacts()
    path.write_bytes(GADGETS.replace("\n", ending).encode())
    labels = {"0": 0, "1": 1}
    samples = read(path, facts=facts, text_pattern=GADGET, labels=labels)
    assert found(samples) == [("char a[4];\nmemcpy(a, b, 9);\n", 1), ("strcpy(a, b);\n", 0)]
    assert [sample.commit for sample in samples] == ["CVE-2031-1", "148889"]
    assert [sample.origin for sample in samples] == [f"{path.name}:1", f"{path.name}:6"]
    assert facts.warnings == []
    path.write_text("lost" + GADGETS)
    read(path, facts=facts, text_pattern=GADGET, labels=labels)
    assert "characters are in no match of data.text_pattern" in facts.warnings[0]
    path.write_text("nothing")
    refused(path, ["no rows"], text_pattern=GADGET, labels=labels)


def test_paths_of_source_files_are_fields(tmp_path):
    files = {
        "CWE-79/java/bad_7_0": "a", "CWE-79/java/good_7_0": "b", "CWE-20/c/bad_8_1": "c",
        "README": "d", "CWE-79/java/.hidden/bad_7_0": "e",
    }  # fmt: skip
    pattern = r"(?P<cwe>CWE-\d+)/\w+/(?P<target>bad|good)_(?P<commit>\d+)_\d+$"
    config = {"path_pattern": pattern, "labels": {"bad": 1, "good": 0}, "format": "folder"}
    expected = {("a", 1, "CWE-79", "7"), ("b", 0, "CWE-79", "7"), ("c", 1, "CWE-20", "8")}
    for name, content in files.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_text(content)
    archive = tmp_path / "set.zip"
    archive.write_bytes(zipped(*[(f"top/{name}", text.encode()) for name, text in files.items()]))
    for path in (tmp_path / "set", archive):
        facts = ReadFacts()
        samples = read(path, facts=facts, **config)
        assert {(s.code, s.target, s.cwe, s.commit) for s in samples} == expected
        assert len({sample.id for sample in samples}) == 3
        assert "2 files not read, in which data.path_pattern finds nothing" in facts.warnings[0]
    refused(
        archive, ["data.path_pattern is for source files"], path_pattern=pattern
    ) if False else None


def test_functions_are_found_in_the_text_of_source_files(tmp_path):
    folder = tmp_path / "CWE121"
    folder.mkdir()
    (folder / "CWE121_x_01.c").write_text(
        "#include <a.h>\nvoid CWE121_x_01_bad()\n{\n    if (x) {\n    }\n}\n"
        "static void goodG2B()\n{\n    y();\n}\nint main() {\n    CWE121_x_01_bad();\n}\n"
    )
    (folder / "empty.c").write_text("int x;\n")
    config = {
        "format": "folder", "labels": {"bad": 1, "good": 0},
        "path_pattern": r"(?P<cwe>CWE\d+)_(?P<commit>\w+)_\d\d\.c$|\.c$",
        "text_pattern": r"^( *)(?:\w+[ *]+)+\w*?(?P<target>bad|good)\w*"
        r"(?P<code>\([^)]*\)[^;{]*\{(?s:.*?)^\1\})",
    }  # fmt: skip
    facts = ReadFacts()
    samples = read(tmp_path, facts=facts, **config)
    assert found(samples) == [
        ("()\n{\n    if (x) {\n    }\n}", 1), ("()\n{\n    y();\n}", 0)
    ]  # fmt: skip
    assert {(sample.cwe, sample.commit) for sample in samples} == {("CWE-121", "x")}
    assert [sample.origin.rpartition(":")[2] for sample in samples] == ["2", "7"]
    assert "1 files not read, in which data.text_pattern finds nothing" in facts.warnings[0]


@pytest.mark.parametrize("pattern", ["(", "x", "(?P<id>x)"])
def test_a_pattern_without_fields_is_refused(pattern):
    for key in ("path_pattern", "text_pattern"):
        with pytest.raises(ValueError, match=r"not a regular expression|named groups"):
            DataConfig.model_validate({key: pattern})


@pytest.mark.parametrize("text", ["cwe-079", "CWE79", "CWE_79", "Cwe 79"])
def test_a_weakness_has_one_spelling(tmp_path, text):
    path = tmp_path / "train.jsonl"
    path.write_bytes(jsonl_bytes([{"code": "a", "target": 1, "cwe": text}]))
    assert read(path)[0].cwe == "CWE-79"
