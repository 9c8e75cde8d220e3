"""Changed lines, from a real repository."""

import subprocess

import pytest

from trainer.errors import ConfigError
from trainer.prediction.changes import changed_lines

WHO = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "init.defaultBranch=main"]


def git(folder, *words):
    subprocess.run(["git", *WHO, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q")
    for name in ("a.c", 'ö "x".c', "gone.c", "same.c"):
        (tmp_path / name).write_text("".join(f"line {n}\n" for n in range(1, 21)))
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def test_changed_added_and_deleted_lines_are_found_by_file(repository):
    edit(repository / "a.c", "line 3\n", "line three\n")
    edit(repository / "a.c", "line 7\n", "line 7\n++ b/fake.c\n@@ -1 +1 @@\n")
    edit(repository / "a.c", "line 12\nline 13\n", "")
    edit(repository / 'ö "x".c', "line 20\n", "line 20")  # no line end any more
    (repository / "gone.c").unlink()
    (repository / "new.c").write_text("int f;\n")
    (repository / "ignored.c").write_text("int f;\n")
    (repository / ".gitignore").write_text("ignored.c\n")
    found = changed_lines(repository, "HEAD")
    # 12 and 13 stood between the lines that are now 13 and 14
    assert found["a.c"] == [(3, 3), (8, 9), (14, 13)]
    assert found['ö "x".c'] == [(20, 20)]
    assert found["new.c"][0][0] == 1
    assert not found.keys() & {"same.c", "ignored.c", "fake.c", "b/fake.c"}


def test_what_the_other_branch_changed_since_is_not_ours(repository):
    git(repository, "checkout", "-qb", "work")
    edit(repository / "a.c", "line 5\n", "line five\n")
    git(repository, "commit", "-qam", "ours")
    git(repository, "checkout", "-q", "main")
    edit(repository / "same.c", "line 9\n", "line nine\n")
    git(repository, "commit", "-qam", "theirs")
    git(repository, "checkout", "-q", "work")
    assert changed_lines(repository, "main").keys() - {""} == {"a.c"}


@pytest.mark.parametrize("revision", ["nowhere", "HEAD:a.c", "a..b", "HEAD\nx"])
def test_what_is_not_a_revision_is_refused(repository, revision):
    with pytest.raises(ConfigError, match="--changed-since"):
        changed_lines(repository, revision)


@pytest.mark.parametrize("revision", ["--output=/tmp/x", "-p", ""])
def test_an_option_is_not_a_revision(repository, revision):
    with pytest.raises(ConfigError, match="a revision does not begin with -"):
        changed_lines(repository, revision)


def test_a_revision_that_is_not_here_is_named_as_such(repository):
    with pytest.raises(ConfigError, match="says: no such revision here; name a commit"):
        changed_lines(repository, "nowhere")


def test_no_program_of_the_repositorys_settings_is_started(repository, tmp_path):
    hook = repository / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    for key in ("core.fsmonitor", "diff.external", "diff.x.textconv", "core.pager"):
        git(repository, "config", key, str(hook))
    for key in ("filter.x.clean", "filter.x.process", "filter.a.b.clean"):
        git(repository, "config", key, str(hook))
    git(repository, "config", "filter.x.required", "true")
    (repository / ".gitattributes").write_text("a.c diff=x filter=x\nsame.c filter=a.b\n")
    (tmp_path / "ran").unlink(missing_ok=True)
    edit(repository / "a.c", "line 3\n", "line three\n")
    edit(repository / "same.c", "line 4\n", "line four\n")
    found = changed_lines(repository, "HEAD")
    assert (found["a.c"], found["same.c"]) == ([(3, 3)], [(4, 4)])
    assert not (tmp_path / "ran").exists()
