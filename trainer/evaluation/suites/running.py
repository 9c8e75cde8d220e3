"""A suite from its items to its report; what is finished is never done again."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.text.terminal import say, step
from trainer.errors import ConfigError
from trainer.evaluation.suites.items import given_outputs, suite_items
from trainer.evaluation.suites.report import write_suite_report
from trainer.evaluation.suites.sandbox import check_sandbox
from trainer.evaluation.suites.suite import Item, Judged, Result, Suite
from trainer.evaluation.suites.suites import SUITES

ITEMS = "items.jsonl"
_AGAIN = ("error", "not measured")  # the machine may be another by now


def checked_names(names: Sequence[str]) -> list[str]:
    """Names of suites.

    Raises:
        ConfigError: One is not a suite, or there is none.
    """
    unknown = [name for name in names if name not in SUITES]
    if unknown or not names:
        what = f"{unknown[0]!r} is not a suite" if unknown else "no suite is named"
        raise ConfigError(f"{what}; there are {', '.join(SUITES)}")
    return list(dict.fromkeys(names))


def score_given(name: str, data: Path, given: Path, folder: Path, limit: int | None) -> Path:
    """Judge released outputs of a suite and write its report into a folder.

    Args:
        limit: Only so many of the items, the first ones.

    Returns:
        The report's JSON.

    Raises:
        DataError: Data and outputs do not fit each other.
        SandboxError: Programs would have to run without a sandbox.
    """
    suite = SUITES[name]
    rows = suite_items(suite, data)
    outputs = given_outputs(given, rows)
    items = [item for item in suite.select(rows) if item.id in outputs or not item.is_extra][:limit]
    missing = [item.id for item in items if item.id not in outputs]
    if missing:
        raise DataError(
            f"{given}: {missing[0]} of {name} has no output, nor have {len(missing) - 1}"
        )
    if suite.runs_programs:
        check_sandbox()
    folder.mkdir(parents=True, exist_ok=True)
    results = judged_items(suite, items, outputs, folder / ITEMS)
    facts = {"data": str(data), "generations": str(given), "items": len(items)}
    return write_suite_report(folder, name, suite, results, facts)


def judged_items(
    suite: Suite, items: Sequence[Item], outputs: Mapping[str, Sequence[str]], log: Path
) -> list[Result]:
    """Judge what the log does not hold yet, several at a time by cores; log each item at its end.

    An item of the log counts if it was judged with the same outputs.
    """
    done = _finished(log, outputs)
    if done:
        say(f"{log}: {len(done)} of {len(items)} items are finished")
    left = [item for item in items if item.id not in done]
    is_torn = log.exists() and not log.read_bytes().endswith(b"\n")
    with log.open("a", encoding="utf-8") as stream, step("judging", len(left)) as shown:
        stream.write("\n" if is_torn else "")
        for item, judged in _judged(suite, left, outputs):
            done[item.id] = judged
            stream.write("".join(_lines(suite, item, outputs[item.id], judged)))
            stream.flush()
            shown.advance()
    return [(item, done[item.id]) for item in items]


def _judged(
    suite: Suite, items: Sequence[Item], outputs: Mapping[str, Sequence[str]]
) -> Iterator[Result]:
    """In the order of the items.

    Threads serve, for programs are processes. Two for each core: a sandbox waits for the kernel,
    which takes its namespaces down, for half of its time.
    """
    with ThreadPoolExecutor(2 * len(os.sched_getaffinity(0))) as pool:
        work = [(item, pool.submit(suite.judge, item, outputs[item.id])) for item in items]
        try:
            yield from ((item, future.result()) for item, future in work)
        finally:
            pool.shutdown(cancel_futures=True)


def _lines(
    suite: Suite, item: Item, outputs: Sequence[str], judged: Sequence[Judged]
) -> Iterator[str]:
    asked = suite.asking.prompt(item.row, "")  # of explain, without the model's description
    digest = hashlib.sha256(asked.encode("utf-8", "replace")).hexdigest()[:16]
    for number, (output, one) in enumerate(zip(outputs, judged, strict=True)):
        row = {
            "id": item.id,
            "sample": number,
            "prompt": digest,
            "output": output,
            "verdict": one.verdict,
            "seconds": round(one.seconds, 3),
            "detail": one.detail,
        }
        yield json.dumps(row) + "\n"


def _finished(log: Path, outputs: Mapping[str, Sequence[str]]) -> dict[str, Sequence[Judged]]:
    """Items of a log whose outputs are these; a torn last line is passed over."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["sample"] == 0:  # judged again: the later one counts
            found[row["id"]] = []
        found[row["id"]].append(row)
    return {
        name: [Judged(row["verdict"], row["seconds"], row["detail"]) for row in rows]
        for name, rows in found.items()
        if [row["output"] for row in rows] == list(outputs.get(name, ()))
        and not any(row["verdict"] in _AGAIN for row in rows)
    }
