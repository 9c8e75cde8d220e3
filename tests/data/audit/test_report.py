"""The audit as a whole: what is planted becomes a verdict, what is clean stays clean."""

import json
import re

import numpy as np
import pytest
from conftest import REPOSITORY, SAMPLES

from data.audit import audit_splits, summary_lines, write_audit
from data.audit.columns import read_columns
from data.audit.figure import lengths_svg
from data.audit.population import _length_auc, length_edges
from data.config import DataConfig
from data.prepared.table import RecordTable, RecordWriter
from data.readers import read_records
from data.records import CodeSample
from data.text.labels import Classes

ARCHIVE = REPOSITORY.parent.joinpath(
    "shared", "data", "vul_java_x1_without_p3", "java_k_1_strict_2023_07_03.tar.gz"
)


def random_split(name: str, num: int, seed: int) -> list[CodeSample]:
    rng = np.random.default_rng(seed)
    return [
        CodeSample(
            f"{name}{i}",
            "\n".join(f"w{a}(w{b}, {c});" for a, b, c in rng.integers(400, size=(12, 3))),
            int(rng.integers(2)),
            f"{name}.jsonl:{i}",
            cwe=f"CWE-{i % 3}",
            commit=f"{name}{i}",
            project=f"project-{name}",
            cve=f"CVE-{name}-{i}",
        )
        for i in range(num)
    ]


@pytest.fixture
def clean() -> dict[str, list[CodeSample]]:
    sizes = {"train": 300, "valid": 150, "test": 150}
    return {name: random_split(name, num, seed) for seed, (name, num) in enumerate(sizes.items())}


def token_lengths(splits):
    return {
        name: np.array([20 + s.code.count("w") + i % 50 for i, s in enumerate(split)])
        for name, split in splits.items()
    }


def found(splits, **options):
    facts = audit_splits(splits, token_lengths(splits), **options)
    return [(finding.severity, finding.found) for finding in facts.findings]


def changed(split, place, **changes):
    split[place] = split[place]._replace(**changes)


def test_a_clean_dataset_has_no_finding(clean):
    facts = audit_splits(clean, token_lengths(clean), normalize_whitespace="lines")
    assert facts.findings == []
    assert [finding.severity for finding in facts.findings].count("leak") == 0
    assert summary_lines(facts) == ["audit: Nothing was found."]


def plant_exact(splits):
    changed(
        splits["test"], 3, code=splits["train"][5].code + "\n", target=splits["train"][5].target
    )


def plant_commit(splits):
    changed(splits["test"], 3, commit="train5")


def plant_cve(splits):
    changed(splits["valid"], 3, cve="CVE-train-5")


def plant_project(splits):
    changed(splits["test"], 3, project="project-train")


def plant_near(splits):
    changed(splits["test"], 3, code=splits["train"][5].code + "\nx();")


def plant_near_within(splits):
    changed(splits["train"], 3, code=splits["train"][5].code + "\nx();")


def plant_repeat(splits):
    twin = splits["valid"][5]
    changed(splits["valid"], 3, code=" " + twin.code, target=twin.target)


def plant_contradiction(splits):
    twin = splits["train"][5]
    changed(splits["train"], 3, code=twin.code, target=1 - twin.target)


def plant_word(splits):
    for i, sample in enumerate(splits["train"]):
        if sample.target:
            changed(splits["train"], i, code=f"// zorp\n{sample.code}")


def plant_ids(splits):
    changed(splits["test"], 3, id="test5")


def plant_one_class(splits):
    splits["valid"][:] = [s._replace(target=0) for s in splits["valid"]]


def plant_unknown_groups(splits):
    for split in splits.values():
        split[:] = [s._replace(commit="", project="", cve="") for s in split]


PLANTED = {
    plant_exact: ("leak", r"1 function of test is in train too.*train.jsonl:5 = test.jsonl:3"),
    plant_commit: ("leak", r"train and test share 1 commit: 1 function of train, 1 of test \(tr"),
    plant_cve: ("leak", r"train and valid share 1 cve: .*CVE-train-5"),
    plant_project: ("note", r"train and test share 1 project: 300 functions of train, 1 of test"),
    plant_near: ("warning", r"1 function of test \(0.7%\) has a near twin in train \(1 pair"),
    plant_near_within: ("note", r"train: 2 functions have near twins in the split \(1 pair"),
    plant_repeat: ("note", r"valid: 1 function repeat"),
    plant_contradiction: (
        "warning",
        r"train: 1 code with different labels.*\(not vulnerable\) = .*\(vulnerable\)",
    ),
    plant_word: ("leak", r"carries the label: 'zorp' in comment \(1\d\d vulnerable, 0 safe\)"),
    plant_ids: ("warning", r"test: 1 id given to 2 functions \(test.jsonl:3 = test.jsonl:5\)"),
    plant_one_class: ("warning", r"valid: every function is safe"),
    plant_unknown_groups: ("note", r"no function names its commit, project or CVE"),
}


@pytest.mark.parametrize(
    ("plant", "severity", "pattern"),
    [(plant, *expected) for plant, expected in PLANTED.items()],
    ids=[plant.__name__ for plant in PLANTED],
)
def test_a_planted_fault_is_found(clean, plant, severity, pattern):
    plant(clean)
    verdicts = found(clean)
    assert any(kind == severity and re.search(pattern, text) for kind, text in verdicts), verdicts


def test_a_project_is_a_leak_where_the_recipe_says_so(clean):
    plant_project(clean)
    assert found(clean)[0][0] == "note"
    assert found(clean, leak_groups=["project"])[0][0] == "leak"


def test_leaks_come_before_warnings_and_notes(clean):
    for plant in (plant_near_within, plant_ids, plant_exact, plant_project):
        plant(clean)
    kinds = [kind for kind, _ in found(clean)]
    assert kinds == sorted(kinds, key=["leak", "warning", "note"].index)
    assert set(kinds) == {"leak", "warning", "note"}
    facts = audit_splits(clean, {})
    assert [finding.severity for finding in facts.findings].count("leak") == 1
    lines = summary_lines(facts)
    assert lines[0] == f"audit: 1 leak, {kinds.count('warning')} warnings, 2 notes"
    assert lines[1].startswith("  leak: 1 function of test is in train too")
    assert len(lines) == 2 + kinds.count("warning")  # notes are in the page alone


def test_length_and_priors_that_tell_are_found(clean):
    lengths = {
        name: np.array([100 + 50 * s.target + i % 80 for i, s in enumerate(split)])
        for name, split in clean.items()
    }
    clean["test"] = [s for s in clean["test"] if s.target == 0 or s.commit.endswith("1")]
    lengths["test"] = np.array([100] * len(clean["test"]))
    texts = [finding.found for finding in audit_splits(clean, lengths).findings]
    assert any("train: vulnerable functions are longer" in text for text in texts)
    assert any(re.search(r"of train are vulnerable, \d+\.\d% of test", text) for text in texts)
    assert not any("test: vulnerable functions are" in text for text in texts)


def test_collapse_is_warned_of_only_where_it_is_chosen_and_harms(clean):
    assert not found(clean, normalize_whitespace="collapse")
    changed(clean["train"], 3, code="// x\n" + clean["train"][3].code)
    assert not found(clean, normalize_whitespace="lines")
    ((severity, text),) = found(clean, normalize_whitespace="collapse")
    assert severity == "warning"
    assert "changes the meaning of 1 of 300 functions" in text


def test_a_sampled_split_is_reported(clean):
    ((severity, text),) = found(clean, max_functions=200)
    assert severity == "note"
    assert "seeded sample of 200 of 300" in text


def test_rank_of_the_length_counts_ties_half():
    # pairs (vulnerable, safe): 5>1, 5>3, 3>1, 3=3 -> 3.5 of 4
    samples = [CodeSample(str(n), "x", target, "t") for n, target in enumerate((1, 0, 1, 0))]
    read = read_columns("train", samples, Classes())
    assert _length_auc(read, np.array([5, 1, 3, 3])) == {"vulnerable": 3.5 / 4}
    one = read_columns("train", [samples[0], samples[2]], Classes())
    assert _length_auc(one, np.array([5, 1])) == {}


def test_every_function_is_in_one_bin_of_its_class(clean):
    lengths = token_lengths(clean)
    facts = audit_splits(clean, lengths)
    for split in facts.splits:
        assert {name: sum(bins) for name, bins in split.histogram.items()} == split.counts
        assert sum(split.counts.values()) == split.num_functions
        assert split.lengths["max"] == lengths[split.name].max()
    assert length_edges({"train": np.array([7, 7])}) == [7.0, 8.0]
    assert length_edges({}) == []


def test_json_markdown_and_picture_are_written(clean, tmp_path):
    plant_exact(clean)
    plant_word(clean)
    changed(clean["train"], 9, cwe="CWE|9\n")  # would break a table
    facts = audit_splits(clean, token_lengths(clean), seq_length=64)
    paths = write_audit(tmp_path / "new" / "audit", facts)
    assert [path.name for path in paths] == ["audit.json", "audit.md", "lengths.svg"]
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(facts.to_json()))
    page = paths[1].read_text()
    assert "\n| valid | " in page.partition("## Lengths in tokens")[2]
    assert "|\n\n| valid" not in page  # apart, it would not belong to its table
    assert page.index("| leak |") < page.index("## Splits") < page.index("![Lengths")
    assert "`zorp` | comment |" in page
    assert "| CWE\\|9 |" in page
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table
    picture = paths[2].read_bytes()
    assert picture.startswith(b"<svg ")
    assert picture == lengths_svg(facts)


def test_user_text_cannot_leave_its_line_of_the_page(clean, tmp_path):
    odd = "a|b\n# heading\r\n| cell {{ 7 + 7 }} {% raw %}"
    for name, field in (("train", "commit"), ("test", "commit"), ("train", "cwe")):
        changed(clean[name], 3, **{field: odd})
    plant_exact(clean)
    changed(clean["train"], 5, origin=f"{odd}:1")
    write_audit(tmp_path, audit_splits(clean, {}))
    page = (tmp_path / "audit.md").read_text()
    assert page.count("a\\|b # heading \\| cell {{ 7 + 7 }} {% raw %}") >= 4
    assert page.count("a\\|b") == page.count("a\\|b # heading")  # never on a line of its own
    assert "a|b" not in page


def test_before_tokenisation_there_is_no_picture(clean, tmp_path):
    facts = audit_splits(clean, {})
    assert [path.name for path in write_audit(tmp_path, facts)] == ["audit.json", "audit.md"]
    assert "Not tokenised" in (tmp_path / "audit.md").read_text()


def test_records_on_disk_give_the_same_facts_as_records_in_memory(clean, tmp_path):
    for plant in (plant_exact, plant_near, plant_commit, plant_ids):
        plant(clean)
    tables = {}
    for name, split in clean.items():
        with RecordWriter(tmp_path / name, CodeSample) as writer:
            for first in range(0, len(split), 64):
                writer.append(split[first : first + 64])
        tables[name] = RecordTable(tmp_path / name, CodeSample)
    one, other = (audit_splits(s, {}, max_functions=200).to_json() for s in (clean, tables))
    for facts in (one, other):
        del facts["near"]["functions_per_second"]
    assert one == other


def test_the_embedded_sample_shares_no_function_and_no_commit_but_has_near_twins():
    names = ("train", "valid", "test", "test_imbalanced")
    config = DataConfig(path=str(SAMPLES))
    splits = {
        name: list(read_records(SAMPLES / f"{name}.jsonl.gz", name, config)) for name in names
    }
    facts = audit_splits(splits, {})
    assert [finding.severity for finding in facts.findings].count("leak") == 0
    assert all(s.num_things == 0 for s in [*facts.exact, *facts.groups["commit"]])
    assert all(s.num_things == 0 for s in facts.contradictions)
    assert [s.num_fix_pairs for s in facts.splits] == [2400, 200, 300, 0]
    near = {pairs.where: pairs for pairs in facts.near.pairs}
    # The generator draws from few words on purpose.
    assert near["train/test"].num_functions == {"train": 32, "test": 28}
    assert {word for w in facts.words.words for word in w.words} >= {"setstring", "strlcpy"}
    assert not any(word.carries_label for word in facts.words.words)


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="needs the real archive beside the repository")
def test_the_real_dataset_has_one_leak_and_118_pairs_in_its_test_split():
    config = DataConfig(path=str(ARCHIVE))
    splits = {
        name: list(read_records(ARCHIVE, name, config)) for name in ("train", "valid", "test")
    }
    facts = audit_splits(splits, {}, normalize_whitespace="collapse")
    assert [finding.severity for finding in facts.findings].count("leak") == 1
    assert facts.findings[0].found.startswith("1 function of test is in train too")
    assert {s.name: s.num_fix_pairs for s in facts.splits}["test"] == 118
    assert [(s.num_functions, s.counts["vulnerable"]) for s in facts.splits] == [
        (810, 403), (272, 139), (252, 123)
    ]  # fmt: skip
    assert facts.words.num_telling == 0
    assert facts.collapse is not None
    assert (facts.collapse.num_harmed, facts.collapse.num_functions) == (447, 810)
