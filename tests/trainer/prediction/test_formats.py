"""Every format of a report, from scores by hand."""

import csv
import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace

import fastjsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.errors import ConfigError
from trainer.prediction.about import About
from trainer.prediction.fingerprints import FINGERPRINT, line_hashes
from trainer.prediction.foreign import ForeignLog, known_fingerprints
from trainer.prediction.formats import FORMATS
from trainer.prediction.ranked import Ranked, ScoredFunction
from trainer.prediction.report import Report
from trainer.prediction.sarif import MOST_RESULTS, write_sarif
from trainer.prediction.tree import Tree

# The published schema (Apache-2.0), without its descriptions.
SCHEMA = Path(__file__).with_name("sarif-2.1.0-rtm.5.json.gz")
SOURCE = "int a;\nint f(char *s) {\n  return s[0]; // <b>&\n}\nint g(void) { return 1; }\n"


@pytest.fixture(scope="module")
def is_valid():
    """Raises where a log does not follow the published schema."""
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    formats = dict.fromkeys(("uri", "uri-reference", "date-time"), "")
    return fastjsonschema.compile(schema, formats=formats, use_default=False)


def scored(place, **changes):
    values = {
        "file": "src/a b.c", "line": 2, "end_line": 4, "function": f"A.f{place}", "language": "C",
        "score": 0.9, "probability": 0.9, "answer": ["CWE-79"], "num_tokens": 12,
        "scores": {"safe": 0.1, "CWE-79": 0.9}, "fingerprint": f"{place:032x}",
        "is_suppressed": False,
    }  # fmt: skip
    return ScoredFunction(**(values | changes))


OPEN: list[Ranked] = []


@pytest.fixture(autouse=True)
def closed():
    """Closes what a test has ranked."""
    yield
    while OPEN:
        OPEN.pop().__exit__()


def report_of(root, functions, top=None, known=()):
    (root / "src").mkdir(exist_ok=True)
    (root / "src" / "a b.c").write_text(SOURCE)
    facts = {"model": "run", "classes": ["safe", "CWE-79"], "found_classes": ["CWE-79"]}
    about = About(facts, [("threshold", "0.500: by hand")], 10, frozenset({"c"}))
    walk = SimpleNamespace(root=root, skipped={}, every=False)
    walk.skipped = Tree(walk).skipped.copy()
    OPEN.append(Ranked())
    report = Report(about, Tree(walk), OPEN[-1], root, top)
    for one in functions:
        report.tree.num_by_language[one.language] += 1
        report.add(one, set(known), keep=True)
    return report


def written(report, name):
    stream = io.StringIO()
    if name == "sarif":
        write_sarif(report, stream, "1.2.3")
    else:
        FORMATS[name](report, stream)
    return stream.getvalue()


MIXED = [
    scored(1, score=0.2, probability=0.3, answer=[]),
    scored(2, score=0.7, probability=0.6),
    scored(3, score=0.95, probability=0.97),
    scored(4, score=0.7, probability=0.6, line=5, end_line=5),
    scored(5, score=0.8, probability=0.8, is_suppressed=True),
]


def test_functions_come_by_score_and_equal_ones_in_the_order_of_the_walk(tmp_path):
    report = report_of(tmp_path, MIXED)
    assert [one.function[-1] for one in report.rows()] == ["3", "5", "2", "4", "1"]
    assert (report.num_findings, report.num_suppressed, report.worst) == (3, 1, 0.97)
    assert [json.loads(x)["function"] for x in written(report, "jsonl").splitlines()] == [
        one["function"] for one in json.loads(written(report, "json"))["functions"]
    ]
    assert json.loads(written(report, "json"))["focaltune"]["num_findings"] == 3
    assert len(written(report_of(tmp_path, MIXED, top=2), "jsonl").splitlines()) == 2


def test_what_a_baseline_knows_is_counted_and_left_out(tmp_path):
    log = tmp_path / "old.sarif"
    log.write_text(written(report_of(tmp_path, MIXED[:3]), "sarif"))
    known = known_fingerprints(log)
    assert known == {MIXED[1].fingerprint, MIXED[2].fingerprint}
    report = report_of(tmp_path, MIXED, known=known)
    assert [one.function[-1] for one in report.rows()] == ["5", "4", "1"]
    assert (report.num_known, report.worst) == (2, 0.6)
    report.about.facts["validation_share_found"] = 0.3
    assert dict(report.lines())["findings"] == (
        "1 new, 2 known from the baseline, 1 functions suppressed by 'focaltune: ignore': 60.0% of"
        " the functions; 30.0% on validation: this code is unlike that of training, trust the order"
        " alone"
    )


def test_sarif_follows_the_schema_and_says_what_code_scanning_reads(tmp_path, is_valid):
    log = json.loads(written(report_of(tmp_path, MIXED), "sarif"))
    is_valid(log)
    (run,) = log["runs"]
    rule = run["tool"]["driver"]["rules"][0]
    assert rule["id"] == "focaltune/cwe-79"
    assert "external/cwe/cwe-079" in rule["properties"]["tags"]
    assert 0 <= float(rule["properties"]["security-severity"]) <= 10
    results = run["results"]
    assert [one["level"] for one in results] == ["error", "error", "warning", "warning"]
    assert [one["rank"] for one in results] == [97.0, 80.0, 60.0, 60.0]
    assert ["suppressions" in one for one in results] == [False, True, False, False]
    place = results[3]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "src/a%20b.c", "uriBaseId": "%SRCROOT%"}
    assert place["region"] == {"startLine": 5, "endLine": 5}
    hashes = line_hashes(SOURCE)
    assert results[3]["partialFingerprints"] == {
        FINGERPRINT: MIXED[3].fingerprint, "primaryLocationLineHash": hashes[4],
    }  # fmt: skip


def test_the_schema_refuses_what_is_not_sarif(tmp_path, is_valid):
    log = json.loads(written(report_of(tmp_path, MIXED), "sarif"))
    log["runs"][0]["results"][0]["rank"] = 101
    with pytest.raises(fastjsonschema.JsonSchemaException):
        is_valid(log)


def test_sarif_has_the_5000_most_probable_findings_and_says_how_many_are_left_out(tmp_path):
    num = MOST_RESULTS + 7
    many = [scored(n, score=n / num, probability=n / num) for n in range(num)]
    run = json.loads(written(report_of(tmp_path, many), "sarif"))["runs"][0]
    assert len(run["results"]) == MOST_RESULTS == 5000
    assert min(one["properties"]["score"] for one in run["results"]) == 7 / num
    notes = run["invocations"][0]["toolExecutionNotifications"]
    assert notes[-1]["message"]["text"].startswith("7 less probable findings are not in this file")


HOSTILE = scored(
    1, function="=cmd|' /C calc'!A0<script>alert(1)</script>[x](http://e)\x1b]0;x\x07\u202e",
    file="<img src=x>\x1b[2J.c", answer=["<i>"], scores={"safe": 0.1, "<i>": 0.9},
)  # fmt: skip


def test_no_name_drives_a_terminal_a_page_or_a_spreadsheet(tmp_path):
    report = report_of(tmp_path, [HOSTILE])
    for name in ("text", "csv", "html"):
        text = written(report, name)
        assert not set("\x1b\x07\u202e") & set(text), name
    (row,) = csv.DictReader(io.StringIO(written(report, "csv")))
    assert row["function"].startswith("'=cmd")
    page = written(report, "html")
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert json.loads(written(report, "jsonl"))["function"] == HOSTILE.function


def test_a_page_is_one_file_without_a_request_and_shows_the_code(tmp_path):
    page = written(report_of(tmp_path, MIXED), "html")
    assert page.count("return s[0]; // &lt;b&gt;&amp;") == 4
    assert "default-src 'none'" in page
    assert not any(word in page for word in ("http:", "https:", "src=", "href=", "url(", "@import"))


def test_text_lists_the_first_twenty_and_says_what_was_never_seen(tmp_path):
    many = [scored(n, score=n / 99, probability=n / 99, language="Go") for n in range(1, 31)]
    text = written(report_of(tmp_path, many), "text")
    assert text.startswith("focaltune: functions by rank\n")
    assert "A.f30" in text
    assert "A.f10 " not in text
    assert "10 more functions" in text
    assert "30 functions longer than any of training; functions in Go" in text


OTHER = {
    "version": "2.1.0",
    "runs": [
        {
            "tool": {"driver": {"name": "other"}},
            "originalUriBaseIds": {"SRC": {"uri": "file:///elsewhere/"}},
            "artifacts": [{"location": {"uri": "src/a%20b.c"}}],
            "results": [
                {"message": {"text": "1"}, "locations": [{"physicalLocation": place}]}
                for place in (
                    {"artifactLocation": {"uri": "src/a%20b.c"}, "region": {"startLine": 3}},
                    {"artifactLocation": {"index": 0}, "region": {"startLine": 5}},
                    {
                        "artifactLocation": {"uri": "./src/../src/a%20b.c", "uriBaseId": "SRC"},
                        "region": {"startLine": 1},
                    },
                    {"artifactLocation": {"uri": "../x.c"}, "region": {"startLine": 1}},
                    {"artifactLocation": {"uri": "https://x/a.c"}, "region": {"startLine": 1}},
                    {"artifactLocation": {"uri": "src/a%20b.c"}},
                )
            ],
        }
    ],
}


def test_findings_of_another_analyser_get_the_probability_of_the_innermost_function(
    tmp_path, is_valid
):
    path = tmp_path / "other.sarif"
    path.write_text(json.dumps(OTHER))
    log = ForeignLog(path, tmp_path)
    assert log.lines == {"src/a b.c": [(3, 3), (5, 5), (1, 1)]}
    functions = [
        scored(1, line=2, end_line=4, probability=0.4),
        scored(2, line=3, end_line=3, probability=1 / 3),
        scored(3, line=5, end_line=5, probability=0.75),
    ]
    assert log.rank(report_of(tmp_path, functions).ranked) == (2, 4)
    stream = io.StringIO()
    log.write(stream)
    after = json.loads(stream.getvalue())
    is_valid(after)
    assert [one.pop("rank", None) for one in after["runs"][0]["results"]] == [
        33.3333,
        75.0,
        *[None] * 4,
    ]
    del after["properties"]
    assert after == OTHER


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"version": "1.0.0", "runs": []}', '{"version": "2.1.0", "runs": [3]}']
)
def test_a_file_that_is_not_sarif_is_refused_by_name(tmp_path, text):
    path = tmp_path / "x.sarif"
    path.write_text(text)
    for read in (lambda: ForeignLog(path, tmp_path), lambda: known_fingerprints(path)):
        with pytest.raises(ConfigError, match=r"x\.sarif"):
            read()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def damaged(value, draw):
    """A value with one part of it replaced by any other."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    if not isinstance(value, dict | list) or not keys or draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    copy, key = value.copy(), draw(st.sampled_from(list(keys)))
    copy[key] = damaged(copy[key], draw) if isinstance(copy[key], dict | list) else draw(VALUES)
    return copy


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_sarif_is_refused_or_ranked(tmp_path, data):
    path = tmp_path / "other.sarif"
    path.write_text(json.dumps(damaged(OTHER, data.draw)))
    try:
        known_fingerprints(path)
        log = ForeignLog(path, tmp_path)
        with Ranked() as ranked:
            ranked.add(scored(1))
            log.rank(ranked)
        log.write(io.StringIO())
        assert all(isinstance(name, str) for name in log.lines)
    except ConfigError:
        pass
