"""Which files are walked: git itself is the reference for .gitignore."""

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.prediction.walking import Walk, read_file

GIT = ["git", "-c", "core.excludesFile=/dev/null", "-c", "init.defaultBranch=main"]


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def names(walk: Walk) -> list[str]:
    return [file.name for file in walk.files()]


@pytest.fixture
def repository(tmp_path):
    subprocess.run([*GIT, "init", "-q", str(tmp_path)], check=True)
    return tmp_path


RULES = {
    ".gitignore": "*.tmp.c\nbuilt/\n/top.c\ndocs/**/old.c\n!keep.tmp.c\n\\#odd.c\ntrail.c  \n"
    "!\n[\n",
    "a/.gitignore": "!top.c\ninner/*\n!inner/yes.c\n",
    "a/b/.gitignore": "*.c\n!b.c\n",
    ".git/info/exclude": "secret.c\n",
    **dict.fromkeys(
        [
            *("x.tmp.c", "keep.tmp.c", "built/x.c", "a/built/y.c", "top.c", "a/top.c", "n.c"),
            *("docs/old.c", "docs/p/q/old.c", "docs/p/new.c", "#odd.c", "trail.c", "secret.c"),
            *("a/inner/no.c", "a/inner/yes.c", "a/inner/deep/z.c", "a/b/a.c", "a/b/b.c", "z/Ä.c"),
            *("a/b/c/b.c", "a/b/c/d.c", "b.c", "a-b.c", "a.c"),
        ],
        "int f(void) { return 0; }\n",
    ),
}


def test_the_walk_takes_the_files_that_git_does(repository):
    written(repository, RULES)
    listed = subprocess.run(
        [*GIT, "ls-files", "-z", "--others", "--exclude-standard"],
        cwd=repository, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    expected = {name for name in listed.split("\0") if name.endswith(".c")}
    walk = Walk([repository])
    found = names(walk)
    assert set(found) == expected
    assert 5 < len(expected) < sum(name.endswith(".c") for name in RULES)
    counted = walk.skipped.copy()
    assert found == names(walk)  # the same order, and not twice as many counted
    assert walk.skipped == counted
    assert walk.skipped["ignored by .gitignore"] > 5


def test_rules_above_a_path_hold_unless_they_ignore_the_path_itself(repository):
    written(repository, RULES)
    assert names(Walk([repository / "a" / "inner"])) == ["a/inner/yes.c"]
    assert names(Walk([repository / "built"])) == ["built/x.c"]
    assert names(Walk([repository / "top.c"])) == ["top.c"]


def test_folders_come_in_the_order_of_their_names_and_each_file_once(tmp_path):
    written(tmp_path, dict.fromkeys(["b/x.py", "a/z.py", "a/b/y.py", "a.py", "c.txt"], ""))
    walk = Walk([tmp_path / "b", tmp_path, tmp_path / "a.py"])
    assert walk.root == tmp_path
    assert names(walk) == ["b/x.py", "a/b/y.py", "a/z.py", "a.py"]
    assert walk.skipped == {"files of other languages": 1}


def test_vendored_and_generated_files_are_counted_and_taken_with_every(tmp_path):
    files = dict.fromkeys(["src/a.js", "node_modules/m/b.js", "src/c.min.js", "x_pb2.py"], "")
    walk = Walk([written(tmp_path, files)])
    assert names(walk) == ["src/a.js"]
    assert walk.skipped == {"vendored folders": 1, "generated": 2}
    assert len(names(Walk([tmp_path], every=True))) == 4
    inside = Walk([tmp_path / "node_modules"])  # what is named is walked
    assert names(inside) == ["m/b.js"]


def test_links_loops_pipes_and_unreadable_files_are_counted(tmp_path):
    tree = written(tmp_path / "tree", {"a/x.c": "int f(void) { return 0; }", "y.c": ""})
    (tree / "a" / "loop").symlink_to(tree)
    (tree / "z.c").symlink_to(tree / "y.c")
    (tree / "dangling.c").symlink_to("nowhere")
    os.mkfifo(tree / "pipe.c")
    (tree / "gone.c").write_text("")
    walk, skipped = Walk([tree]), Counter()
    files = list(walk.files())
    (tree / "gone.c").unlink()
    read = {file.name: read_file(file, 10, skipped) for file in files}
    assert read == {"a/x.c": b"int f(void)", "gone.c": None, "pipe.c": None, "y.c": b""}
    assert walk.skipped == {"links": 3}
    assert skipped == {"devices, pipes and sockets": 1, "unreadable files": 1}


def test_a_folder_deeper_than_python_recurses_is_walked(tmp_path):
    before, depth = os.getcwd(), 1200
    try:
        os.chdir(tmp_path)
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("deep.c").write_text("")
        os.chdir(tmp_path)
        assert names(Walk([tmp_path])) == [f"{'d/' * depth}deep.c"]
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)  # pytest's own way recurses


def test_a_name_that_is_not_utf8_is_written_out(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.c", "w"):
        pass
    assert names(Walk([tmp_path])) == ["\\xff.c"]


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no_such does not exist"):
        Walk([tmp_path / "no_such"])
