"""The lines of a work tree that differ from a revision, as git says."""

import ast
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data.readers.reading import quote, shown
from trainer.errors import ConfigError

Lines = Mapping[str, Sequence[tuple[int, int]]]
"""Name of a file -> first and last of lines; where some were deleted, those around the gap are
its last and first: only what holds both was touched."""

_EVERY = (1, 10**9)
_HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
# Of the user's own settings, none that starts a program or writes.
_GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.quotePath=true")
_DIFF = (
    *("diff", "--no-color", "--no-ext-diff", "--no-textconv", "--unified=0", "--find-renames"),
    *("--ignore-submodules", "--src-prefix=a/", "--dst-prefix=b/"),
)


def changed_lines(top: Path, revision: str) -> Lines:
    """Lines of the work tree that changed since it left a revision; new files are changed whole.

    Args:
        top: Of the repository.
        revision: A commit, branch or tag; compared is where the current commit branched off it.

    Raises:
        ConfigError: git is missing, refuses, or knows no such revision.
    """
    if revision.startswith("-") or not revision:
        raise ConfigError(f"--changed-since {quote(revision)}: a revision does not begin with -")
    commit = _git(
        top, "rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}"
    )
    since = commit.decode("ascii").strip()
    branched = _run(top, "merge-base", since, "HEAD")
    since = branched.stdout.decode("ascii").strip() or since  # a shallow clone may not know
    found: dict[str, list[tuple[int, int]]] = {}
    for name, lines in _hunks(_git(top, *_DIFF, since, "--", without=_filters(top))):
        found.setdefault(name, []).append(lines)
    new = _git(top, "ls-files", "-z", "--others", "--exclude-standard")
    for raw in new.split(b"\0"):
        found[_name(raw)] = [_EVERY]
    return found


def _filters(top: Path) -> list[str]:
    """Settings that make git pass files through a program before it compares them."""
    pattern = r"^filter\..*\.(clean|process|required)$"
    found = _run(top, "config", "--null", "--name-only", "--get-regexp", pattern).stdout
    return [key.decode("utf-8", "surrogateescape") for key in found.split(b"\0") if key]


def _run(
    top: Path, *arguments: str, without: Sequence[str] = ()
) -> "subprocess.CompletedProcess[bytes]":
    """Run git, with some settings empty; it fetches nothing."""
    environment = {**os.environ, "GIT_NO_LAZY_FETCH": "1"}
    first = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    for number, key in enumerate(without, start=first):
        environment[f"GIT_CONFIG_KEY_{number}"] = key
        environment[f"GIT_CONFIG_VALUE_{number}"] = ""
    environment["GIT_CONFIG_COUNT"] = str(first + len(without))
    command = [*_GIT, *arguments]
    try:
        return subprocess.run(command, cwd=top, capture_output=True, check=False, env=environment)
    except OSError as error:
        raise ConfigError(f"--changed-since needs git, which does not start: {error}") from error


def _git(top: Path, *arguments: str, without: Sequence[str] = ()) -> bytes:
    done = _run(top, *arguments, without=without)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip() or "no such revision here"
        raise ConfigError(
            f"--changed-since: git {arguments[0]} in {top} says: {said[:500]}; name a commit that"
            " this clone has (a CI job may have to fetch it: fetch-depth: 0)"
        )
    return done.stdout


def _hunks(diff: bytes) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and lines of each hunk; its own lines are passed over by their number."""
    name, passed = "", 0
    for line in diff.split(b"\n"):
        if passed:
            passed -= not line.startswith(b"\\")  # "\ No newline at end of file" is not counted
            continue
        if line.startswith(b"+++ "):
            name = _name(_unquoted(line[4:].rstrip(b"\t")).removeprefix(b"b/"))
        elif found := _HUNK.match(line):
            removed, first, added = (int(one) if one else 1 for one in found.groups())
            passed = removed + added
            yield name, (first, first + added - 1) if added else (first + 1, first)


def _unquoted(name: bytes) -> bytes:
    """A name as git quotes it, in the escapes of C, which are Python's too."""
    if not name.startswith(b'"'):
        return name
    value = ast.literal_eval("b" + name.decode("ascii"))
    assert isinstance(value, bytes)
    return value


def _name(raw: bytes) -> str:
    return shown(raw.decode("utf-8", "surrogateescape"))
