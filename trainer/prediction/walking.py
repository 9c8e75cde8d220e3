"""The source files below the paths that are given, in an order that never changes."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from data.readers.reading import shown
from trainer.errors import ConfigError
from trainer.prediction.languages import Language, languages_of

_MOST_IGNORE_BYTES = 1 << 20
_HIDDEN = {".git", ".hg", ".svn", ".bzr", "CVS", "__pycache__", ".ipynb_checkpoints"}
_VENDORED = {
    *("node_modules", "bower_components", "jspm_packages", "vendor", "vendors", "vendored"),
    *("third_party", "third-party", "thirdparty", "3rdparty", "external_libs", "extern"),
    *("site-packages", "dist-packages", ".venv", "venv", "virtualenv", ".tox", ".nox", ".eggs"),
    *("Pods", "Carthage", ".cargo", ".gradle", ".m2", "Godeps", ".bundle", ".yarn"),
}
_GENERATED = (
    *(".min.js", "-min.js", ".bundle.js", ".pb.go", ".pb.cc", ".pb.h", "_pb2.py", "_pb2_grpc.py"),
    *(".g.cs", ".g.i.cs", ".designer.cs", ".generated.cs", "_generated.go", ".gen.go", "_pb.rb"),
    *(".tab.c", ".tab.h", ".yy.c", "_wrap.c", "_wrap.cxx", ".generated.ts", ".pb.ts", "_pb.js"),
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a known language.

    Attributes:
        path: Opens it.
        name: Below the root of the walk, with "/".
        languages: That its ending stands for.
    """

    path: Path
    name: str
    languages: tuple[Language, ...]


class Walk:
    """Walks files and folders.

    A path that is given is walked whatever is said of it; below it, .gitignore holds as in git, and
    links are not followed.

    Args:
        paths: Files and folders.
        every: Vendored and generated files, too.

    Attributes:
        root: Names of files are below it: the top of the git repository of all paths, else the
            current folder if it holds them, else the folder around them.
        skipped: Files and folders that are not walked, by reason.

    Raises:
        ConfigError: A path does not exist.
    """

    def __init__(self, paths: Sequence[Path], *, every: bool = False) -> None:
        for path in paths:
            if not path.exists():
                raise ConfigError(f"{path} does not exist (resolved: {path.resolve()})")
        self.paths = [Path(os.path.abspath(path)) for path in paths]
        self.root = _root(self.paths)
        self.every = every
        self.skipped = Counter[str]()

    def files(self) -> Iterator[SourceFile]:
        """Every file once, a folder's by name."""
        seen: set[str] = set()
        self.skipped.clear()
        for path in self.paths:
            above = _rules_above(path)
            found = self._below(path, above) if path.is_dir() else self._file(path)
            for file in found:
                if file.name not in seen:
                    seen.add(file.name)
                    yield file

    def _below(self, top: Path, above: "Sequence[_Rules]") -> Iterator[SourceFile]:
        waiting = [(top, tuple(above), True)]  # not by recursion: folders can be deeper than that
        while waiting:
            path, rules, is_folder = waiting.pop()
            if not is_folder:
                yield from self._file(path)
                continue
            rules = (*rules, *_own_rules(path))
            inside = [(one, rules, is_one) for one, is_one in self._entries(path, rules)]
            waiting += reversed(inside)

    def _entries(self, folder: Path, rules: "Sequence[_Rules]") -> Iterator[tuple[Path, bool]]:
        """What is walked of a folder, by name, and whether it is one."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            self.skipped["unreadable folders"] += 1
            return
        for entry in entries:
            path, is_folder = Path(entry.path), entry.is_dir(follow_symlinks=False)
            if entry.name in _HIDDEN:
                continue
            if entry.is_symlink():
                self.skipped["links"] += 1
            elif _is_ignored(path, rules, is_folder=is_folder):
                self.skipped["ignored by .gitignore"] += 1
            elif is_folder and entry.name in _VENDORED and not self.every:
                self.skipped["vendored folders"] += 1
            else:
                yield path, is_folder

    def _file(self, path: Path) -> Iterator[SourceFile]:
        languages = languages_of(path.name)
        if not languages:
            self.skipped["files of other languages"] += 1
        elif path not in self.paths and path.name.lower().endswith(_GENERATED) and not self.every:
            self.skipped["generated"] += 1
        else:
            name = shown(path.relative_to(self.root).as_posix())
            yield SourceFile(path, name, languages)


def read_file(file: SourceFile, most_bytes: int, skipped: Counter[str]) -> bytes | None:
    """A file's bytes, at most one more than allowed; None where it cannot be read, and counted."""
    try:
        with open(os.open(file.path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                skipped["devices, pipes and sockets"] += 1
                return None
            return stream.read(most_bytes + 1)
    except OSError:
        skipped["unreadable files"] += 1
        return None


def git_top(path: Path) -> Path | None:
    """The top of the git repository around a path."""
    folders = (path, *path.parents) if path.is_dir() else path.parents
    return next((folder for folder in folders if (folder / ".git").exists()), None)


def _root(paths: Sequence[Path]) -> Path:
    folders = [path if path.is_dir() else path.parent for path in paths]
    tops = {git_top(folder) for folder in folders}
    if len(tops) == 1 and (top := tops.pop()) is not None:
        return top
    here = Path(os.path.abspath(os.curdir))
    if all(folder.is_relative_to(here) for folder in folders):
        return here
    return Path(os.path.commonpath(folders))


_Rules = tuple[Path, GitIgnoreSpec]  # a folder, and what its .gitignore says


def _rules_above(path: Path) -> tuple[_Rules, ...]:
    """Rules of the repository around a path; none where they ignore the path itself."""
    top = git_top(path)
    if top is None or top == path:
        return ()
    above = [folder for folder in reversed(path.parents) if folder.is_relative_to(top)]
    rules = tuple(one for folder in above for one in _own_rules(folder))
    return () if _is_ignored(path, rules, is_folder=path.is_dir()) else rules


def _own_rules(folder: Path) -> Iterator[_Rules]:
    """What a folder's .gitignore says, and at the top of a repository its info/exclude."""
    for file in (folder / ".git" / "info" / "exclude", folder / ".gitignore"):
        try:
            if not file.is_file() or file.is_symlink():
                continue
            with file.open("rb") as stream:
                text = stream.read(_MOST_IGNORE_BYTES).decode("utf-8", "surrogateescape")
        except OSError:
            continue
        lines = [line for line in text.split("\n") if _is_pattern(line)]
        yield folder, GitIgnoreSpec.from_lines(lines, backend="simple")


def _is_pattern(line: str) -> bool:
    try:
        GitIgnoreSpec.from_lines([line], backend="simple")
    except ValueError:  # git, too, passes over what is not one
        return False
    return True


def _is_ignored(path: Path, rules: Sequence[_Rules], *, is_folder: bool) -> bool:
    """Whether the last rule that matches ignores a path; deeper files come later."""
    for folder, spec in reversed(rules):
        name = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
        verdict = spec.check_file(name).include
        if verdict is not None:
            return verdict
    return False
