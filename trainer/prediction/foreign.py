"""Findings of another analyser: the lines they name, and their file with our probabilities."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from posixpath import normpath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from data.errors import json_object, parsing
from trainer.errors import ConfigError
from trainer.prediction.changes import Lines
from trainer.prediction.fingerprints import FINGERPRINT
from trainer.prediction.ranked import Ranked

_MOST_BYTES = 512 << 20
_REMEDY = "write it again as SARIF 2.1.0"
Json = dict[str, Any]


class ForeignLog:
    """A SARIF file of another analyser.

    Args:
        path: It.
        root: Holds the files that it names.

    Raises:
        ConfigError: It is not SARIF.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.log, self.root = sarif_log(path), root
        with parsing(f"{path} is not SARIF 2.1.0", ConfigError, _REMEDY):
            self.places = [
                (result, _place(run, result, root)) for run, result in _results(self.log)
            ]

    @property
    def lines(self) -> Lines:
        """The lines that results name, by file."""
        found: dict[str, list[tuple[int, int]]] = {}
        for _, place in self.places:
            if place is not None:
                found.setdefault(place[0], []).append((place[1], place[1]))
        return found

    def rank(self, ranked: Ranked) -> tuple[int, int]:
        """Give each result the probability of the innermost function around it.

        Returns:
            How many results have one, and how many have not.
        """
        functions: dict[str, list[tuple[int, int, float]]] = {}
        for one in ranked:
            functions.setdefault(one.file, []).append((one.line, one.end_line, one.probability))
        num = 0
        for result, place in self.places:
            around = [
                (last - first, probability)
                for first, last, probability in functions.get(place[0] if place else "", ())
                if place is not None and first <= place[1] <= last
            ]
            if around:
                result["rank"] = round(100 * min(around)[1], 4)
                num += 1
        return num, len(self.places) - num

    def write(self, stream: IO[str]) -> None:
        """The file with its ranks; what is known of the ranks stands at its beginning."""
        own = self.log.get("properties") or {}
        said = "rank is 100 times the probability that a model gives to the function around"
        log = {"properties": {"focaltune": said, **own}}
        log |= {key: value for key, value in self.log.items() if key not in log}
        with parsing("the findings cannot be written again", ConfigError, _REMEDY):
            json.dump(log, stream, indent=1)
        stream.write("\n")


def sarif_log(path: Path) -> Json:
    """A file that says it is SARIF 2.1.

    Raises:
        ConfigError: It is not.
    """
    log = json_object(path, ConfigError, _REMEDY, _MOST_BYTES)
    if not str(log.get("version", "")).startswith("2.1") or not isinstance(log.get("runs"), list):
        raise ConfigError(f"{path} is not SARIF 2.1.0: it has no runs of that version; {_REMEDY}")
    return log


def known_fingerprints(path: Path) -> set[str]:
    """Fingerprints of ours in an earlier file.

    Raises:
        ConfigError: It is not SARIF.
    """
    with parsing(f"{path} is not SARIF 2.1.0", ConfigError, _REMEDY):
        found = (result.get("partialFingerprints", {}) for _, result in _results(sarif_log(path)))
        return {str(one[FINGERPRINT]) for one in found if FINGERPRINT in one}


def _results(log: Json) -> Iterator[tuple[Json, Json]]:
    return ((run, result) for run in log["runs"] for result in run.get("results") or ())


def _place(run: Json, result: Json, root: Path) -> tuple[str, int] | None:
    """File below the root and line of a result; None where it names neither."""
    for location in result.get("locations") or ():
        physical = location.get("physicalLocation") or {}
        line = (physical.get("region") or {}).get("startLine")
        name = _file(run, physical.get("artifactLocation") or {}, root)
        if name is not None and isinstance(line, int):
            return name, line
    return None


def _file(run: Json, artifact: Mapping[str, Any], root: Path) -> str | None:
    if "uri" not in artifact and isinstance(index := artifact.get("index"), int):
        artifact = run["artifacts"][index]["location"]
    uri = artifact.get("uri")
    if not isinstance(uri, str):
        return None
    bases = run.get("originalUriBaseIds") or {}
    base = str((bases.get(artifact.get("uriBaseId")) or {}).get("uri") or "")
    for whole in (base + uri, uri):  # a base of another machine is not here
        parts = urlsplit(whole)
        path = unquote(parts.path)
        if parts.scheme not in ("", "file"):
            return None
        if path.startswith("/"):
            inside = Path(normpath(path))
            if inside.is_relative_to(root):
                return inside.relative_to(root).as_posix()
        elif not normpath(path).startswith(".."):
            return normpath(path)
    return None
