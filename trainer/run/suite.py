"""Suites measured with a model: what it writes is logged as it comes, then judged."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import parsing
from data.text import terminal
from data.text.labels import Classes
from data.text.tokenizer import CodeTokenizer
from trainer.config.methods import num_virtual_tokens
from trainer.config.recipe import config_of
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError, ModelError
from trainer.evaluation.suites.asking import Asking
from trainer.evaluation.suites.items import suite_items
from trainer.evaluation.suites.report import write_suite_report
from trainer.evaluation.suites.running import ITEMS, judged_items
from trainer.evaluation.suites.sandbox import check_sandbox
from trainer.evaluation.suites.suite import Item
from trainer.evaluation.suites.suites import SUITES
from trainer.models.files import base_digest, check_model_files, positions
from trainer.processes.imports import stack_imports
from trainer.run.commands import joined_if_several, without_unused
from trainer.run.trained import open_trained
from trainer.run_folder.folder import FACTS, MODEL, is_run_folder

if TYPE_CHECKING:
    from trainer.generation.decoding import Writer
    from trainer.generation.vllm_writer import VllmWriter
    from trainer.processes.distributed import Ranks

_OUTPUTS, _DESCRIPTIONS = "outputs.jsonl", "descriptions.jsonl"


@dataclass(frozen=True)
class Opened:
    """A language model on disk: one that was trained here, or a plain base.

    Attributes:
        folder: Of its weights.
        digest: Other weights have another.
        window: Most tokens that it reads; None where it has no limit.
    """

    config: RunConfig
    folder: Path
    tokenizer: CodeTokenizer
    digest: str
    window: int | None


@dataclass(frozen=True)
class _Question:
    item: Item
    sample: int
    text: str
    about: str  # digest of all that an answer depends on


def measure_model(
    model: Path, names: Sequence[str], data: Path, output: Path | None = None,
    *, limit: int | None = None, base: Path | None = None, batch: int = 8,
    engine: str = "auto",
) -> None:  # fmt: skip
    """Measure a model on suites; write FOLDER/NAME/ of each, with what it wrote.

    As one rank of those that the launchers above started, it writes its share; the first rank
    judges. What the logs hold of the same model is not written again.

    Args:
        model: A finished run, a trained model's folder, or the folder of a base.
        names: Of SUITES.
        data: As suite_items.
        output: FOLDER; None: the run's suites/, or MODEL.suites of a model without one.
        limit: Only so many of the items, the first ones.
        base: The model's base, where that has moved.
        batch: Texts that share a pass.
        engine: "own", "vllm", or "auto": vLLM where it can.

    Raises:
        ConfigError: The model is a classifier, a number is out of range, or vLLM cannot write.
        DataError: The data do not fit a suite.
        ModelError: As open_trained.
        SandboxError: Programs would have to run without a sandbox.
    """
    if batch < 1 or (limit is not None and limit < 1):
        raise ConfigError("--batch and --limit are at least 1")
    opened = open_model(model, base)
    if any(SUITES[name].runs_programs for name in names):
        check_sandbox()
    items = {name: SUITES[name].select(suite_items(SUITES[name], data))[:limit] for name in names}
    run = opened.folder.parent
    usual = run / "suites" if is_run_folder(run) else opened.folder.with_suffix(".suites")
    folders = {name: (output or usual) / name for name in names}
    store = joined_if_several(opened.config)
    without_unused(opened.config)
    with stack_imports():
        from trainer.processes.distributed import start, stop
        from trainer.run.build import alone

    ranks = alone() if store is None else start(opened.config.engine.timeout_seconds, store)
    most = max(_most_tokens(SUITES[name].asking, opened) for name in names)
    writers = _writers(opened, ranks, engine, most)
    outputs = {}
    for name in names:
        task = _Task(opened, *writers, ranks, batch, folders[name])
        outputs[name] = task.outputs(SUITES[name].asking, items[name])
    if store is not None:
        stop()
    for name in names if ranks.is_main else ():
        suite, folder = SUITES[name], folders[name]
        results = judged_items(suite, items[name], outputs[name], folder / ITEMS)
        facts = {"data": str(data), "model": str(model), "items": len(items[name])}
        write_suite_report(folder, name, suite, results, facts)


def open_model(model: Path, base: Path | None = None) -> Opened:
    """Open a trained language model, or a base.

    Raises:
        ConfigError: It is a classifier.
        ModelError: As open_trained; or the folder is not a base either.
    """
    is_ours = any((folder / FACTS).is_file() for folder in (model, model / MODEL))
    if is_ours or is_run_folder(model) or not (model / "config.json").is_file():
        trained = open_trained(model, base)
        config, folder, tokenizer = trained.config, trained.folder, trained.tokenizer
        if not config.is_language:
            raise ConfigError(
                f"{model} is a classifier and writes nothing; score files with evaluate.py"
            )
        digest = hashlib.sha256((folder / FACTS).read_bytes()).hexdigest()
    else:
        folder = model.resolve()
        sections = {  # of training, which it must name all the same, the least
            "model": {"path": str(folder)}, "task": {"name": "instruction"},
            "tuning": {"method": "full"}, "run": {"output_dir": f"{folder}.suites"},
            "data": {"path": str(folder), "tokenizer": str(folder), "seq_length": 128},
            "optim": {"max_steps": 1},
        }  # fmt: skip
        with parsing(f"{folder} cannot be used as a base", ModelError, "give another folder"):
            config = config_of(sections, (), folder / "config.json")
            tokenizer = CodeTokenizer(folder)
        check_model_files(config, tokenizer.vocab_size)
        digest = base_digest(config.model, 0)
    most = positions(config.model)
    window = most and most - num_virtual_tokens(config.tuning)
    return Opened(config, folder, tokenizer, digest, window)


def _most_tokens(asking: Asking, opened: Opened) -> int:
    return min(asking.most_tokens, opened.window or asking.most_tokens)


def _writers(
    opened: Opened, ranks: "Ranks", engine: str, most: int
) -> tuple[bool, Callable[[], "Writer | VllmWriter"], float]:
    """Load the model: whether vLLM writes, what makes a writer of this rank, bytes of a token.

    The bytes are those of the cache of our own writer.

    Args:
        most: Tokens that the model reads, of a prompt and its answer.
    """
    from trainer.generation.decoding import Writer
    from trainer.generation.vllm_writer import VllmWriter, takes_vllm
    from trainer.planning.memory import cache_bytes
    from trainer.planning.plan import read_shape
    from trainer.planning.resolved import BYTES
    from trainer.run.build import resolve_here, scoring_model

    config, folder = opened.config, opened.folder
    if takes_vllm(engine, config, folder, ranks):
        longest = min(most + 1, opened.window or most + 1)  # the last token is not read
        vllm = VllmWriter(resolve_here(config, ranks.device).config, folder, ranks, longest)
        return True, lambda: vllm, 0.0
    settled, network = scoring_model(config, folder, Classes(), ranks, None)
    cached = cache_bytes(read_shape(settled), 1, BYTES[settled.base_dtype])
    return False, lambda: Writer(network, ranks.device, is_alone=True), cached


@dataclass(frozen=True)
class _Task:
    """A suite under way on a rank."""

    opened: Opened
    is_vllm: bool
    writer: Callable[[], "Writer | VllmWriter"]
    cached: float
    ranks: "Ranks"
    batch: int
    folder: Path

    def outputs(self, asking: Asking, items: Sequence[Item]) -> dict[str, list[str]]:
        """The outputs of each item that are to be judged, on every rank."""
        number = asking.num_samples
        said = {(item.id, n): "" for item in items for n in range(number)}
        if asking.describes is not None:
            asked = self._questions(asking.describes, items, said)
            said = self._written(asking.describes, asked, _DESCRIPTIONS)
        answers = self._written(asking, self._questions(asking, items, said), _OUTPUTS)
        return {item.id: [answers[item.id, n] for n in range(number)] for item in items}

    def _questions(
        self, asking: Asking, items: Sequence[Item], said: dict[tuple[str, int], str]
    ) -> list[_Question]:
        """Every sample of every item; `said` describes its solution."""
        of_all = (
            self.opened.digest, asking.most_tokens, asking.temperature, asking.top_p,
            str(self.opened.config.model.dtype), *["vllm"] * self.is_vllm,
        )  # fmt: skip
        by_id, questions = {item.id: item for item in items}, []
        for (name, sample), description in said.items():
            text = asking.prompt(by_id[name].row, description)
            about = hashlib.sha256(json.dumps([*of_all, text]).encode()).hexdigest()[:16]
            questions.append(_Question(by_id[name], sample, text, about))
        return questions

    def _written(
        self, asking: Asking, questions: Sequence[_Question], name: str
    ) -> dict[tuple[str, int], str]:
        """What is kept of each answer, from the log or written and logged now."""
        from trainer.generation.decoding import Limits
        from trainer.generation.sampling import Asked, generate
        from trainer.processes.distributed import agreed, gather
        from trainer.run.loop import memory_errors_named

        log, ranks = self.folder / name, self.ranks
        logged = _logged(log) if ranks.is_main else {}
        if ranks.world_size > 1:
            logged = dict(gather({"all": list(logged.items())}, ranks)[0]["all"])
        kept, left = {}, []
        for one in questions:
            text = logged.get(f"{one.item.id} {one.sample} {one.about}")
            if text is None:
                left.append(one)
            else:
                kept[one.item.id, one.sample] = text
        most = _most_tokens(asking, self.opened)
        limits = Limits(most, most, asking.temperature, 0, asking.top_p, self.batch)
        asked = [
            Asked(
                one.text, (one.item.place, one.sample), _over(asking, one.item),
                asking.stops(one.item.row),
            )
            for one in left
        ]  # fmt: skip
        room = (
            f"with {self.batch} texts of up to {most} tokens together"
            f", whose keys and values take {self.cached * self.batch * most / 2**30:.2f} GiB; lower"
            " --batch"
        )
        showing = terminal.step(f"writing {self.folder.name}", len(questions))
        with showing as shown, memory_errors_named(room):
            shown.advance(len(kept))
            for answers in generate(asked, self.writer(), self.opened.tokenizer, limits, ranks):
                new = [(left[n], asking.program(left[n].item.row, answers[n])) for n in answers]
                kept |= {(one.item.id, one.sample): text for one, text in new}
                shown.advance(len(new))
                if ranks.world_size == 1:
                    _append(log, new)
                else:
                    agreed(ranks, lambda: _append(log, new) if ranks.is_main else None)  # noqa: B023
        return kept


def _over(asking: Asking, item: Item) -> Any:
    return lambda text: asking.is_over(text, item.row)


def _append(log: Path, new: Sequence[tuple[_Question, str]]) -> None:
    """Add outputs to a log; a line that was torn off stays alone."""
    log.parent.mkdir(parents=True, exist_ok=True)
    is_torn = log.exists() and not log.read_bytes().endswith(b"\n")
    with log.open("a", encoding="utf-8") as stream:
        stream.write("\n" if is_torn else "")
        for one, text in new:
            row = {"id": one.item.id, "sample": one.sample, "asked": one.about, "output": text}
            stream.write(json.dumps(row) + "\n")


def _logged(log: Path) -> dict[str, str]:
    """Outputs of a log by item, sample and what was asked; torn lines are passed over."""
    return {f"{row['id']} {row['sample']} {row['asked']}": row["output"] for row in _rows(log)}


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if {"id", "sample", "asked", "output"} <= row.keys():
            yield row
