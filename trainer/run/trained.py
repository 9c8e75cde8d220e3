"""A trained model on disk, opened for use: RUN/model, or a copy of it anywhere.

Nothing of the run is needed but this folder and, unless it is a whole model, its base. torch is
imported only when the weights are loaded.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data.errors import DataError, json_object, parsing
from data.prepared.prepare import Prepared
from data.text.labels import Classes
from data.text.tokenization import ExampleSet, encode_functions
from data.text.tokenizer import CodeTokenizer
from trainer.config.recipe import config_of, load_run_config
from trainer.config.renamed import with_current_keys
from trainer.config.sections import ModelSection, RunConfig
from trainer.errors import ConfigError, ModelError
from trainer.evaluation.decision import Decision
from trainer.models.files import base_digest, check_model_files
from trainer.run_folder.folder import (
    BASE,
    BASELINES,
    FACTS,
    MODEL,
    MODEL_FORMAT,
    RECIPE,
    is_run_folder,
    verify,
)

if TYPE_CHECKING:
    from trainer.models.heads import PackedModel
    from trainer.processes.distributed import Ranks

_BEFORE = "adapter"  # what versions before 0.3 wrote
_REMEDY = "copy the folder again"


@dataclass(frozen=True)
class Trained:
    """A trained model that is sound on disk.

    Attributes:
        folder: Holds its weights, tokenizer and focaltune.json.
        config: Its recipe without the paths of the run; model.path is the base, or the folder
            itself where it is a whole model. Reports go into run.output_dir: the run around the
            folder, else FOLDER.evaluated.
        tokenizer: Encodes as in training.
        facts: The content of focaltune.json.
        decision: How scores become answers; the usual one of a language model, which decides
            nothing.
        prepared: What it knows of its data: digests, classes, counts of training; no splits.
    """

    folder: Path
    config: RunConfig
    tokenizer: CodeTokenizer
    facts: Mapping[str, Any]
    decision: Decision
    prepared: Prepared

    @property
    def run(self) -> Path | None:
        """The run folder around it; None for a copy."""
        return _run_around(self.folder)

    @property
    def baselines(self) -> Path | None:
        """What the baselines of its run learned: words of the training data, kept from copies."""
        return self.run / BASELINES if self.run and (self.run / BASELINES).is_dir() else None

    @property
    def classes(self) -> Classes:
        """What a classifier tells apart."""
        return self.prepared.classes

    @property
    def is_whole(self) -> bool:
        """Whether it holds all weights, so that it has no base."""
        return self.config.tuning.method == "full"

    def training_config(self, overrides: Sequence[str]) -> RunConfig:
        """The recipe by which its data are read again: where the run said, or where they are now.

        Args:
            overrides: section.key=value of data.

        Raises:
            DataError: Nothing says where they are.
        """
        own = {
            "model.path": self.config.model.path, "model.config": None,
            "data.tokenizer": str(self.folder), "run.output_dir": str(self.config.output_dir),
        }  # fmt: skip
        given = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in own.items())]
        if self.run is not None:
            return load_run_config(self.run / RECIPE, given)
        if not overrides:
            raise DataError(f"{self.folder} is without its run; give data.path=FOLDER")
        return config_of(self.facts["recipe"], given, self.folder)

    def load(self, ranks: "Ranks", examples: ExampleSet | None = None) -> "PackedModel":
        """The model in evaluation mode on a rank's device, its way to keep records apart proved.

        Args:
            ranks: Those that hold the model; all call this.
            examples: Some of what it will read, by which the proof is made; None: beginnings of
                this file.

        Raises:
            ModelError: The base or the weights do not load, or packing does not hold.
        """
        from trainer.run.build import scoring_model

        if examples is None:
            text = Path(__file__).read_text(encoding="utf-8")
            examples, _ = self.examples_of([text[: 2**n] for n in range(4, 12)])
        return scoring_model(self.config, self.folder, self.classes, ranks, examples)[1]

    def examples_of(self, texts: Sequence[str]) -> tuple[ExampleSet, npt.NDArray[np.int32]]:
        """Texts as the model reads functions; of a language model every token is a target.

        Returns:
            The examples, and the tokens of each whole text; -1 where it is too long to be counted.
        """
        pieces = encode_functions(texts, self.tokenizer, self.config.data)
        record_E, tokens, classes = pieces.record_E, pieces.tokens, self.classes
        examples = ExampleSet(
            tokens=tokens,
            starts=np.cumsum([0, *pieces.lengths_E], dtype=np.int64),
            record_E=record_E,
            label_E=np.zeros(len(record_E), np.int32),
            share_E=1.0 / np.bincount(record_E)[record_E],
            weight_E=np.ones(len(record_E), np.float32),
            num_records=len(texts),
            supervised=np.ones(len(tokens), np.bool_) if self.config.is_language else None,
            members_KC=None
            if classes.sets is None
            else np.zeros((1, len(classes.names)), np.bool_),
        )
        return examples, pieces.code_lengths_N


def open_trained(model: Path, base: Path | None = None, overrides: Sequence[str] = ()) -> Trained:
    """Open a trained model.

    Args:
        model: A finished run, its model/, or a copy of that.
        base: The folder of its base where that has moved.
        overrides: section.key=value, on its recipe.

    Raises:
        ConfigError: No such folder, or a base that is not asked for.
        ModelError: The folder is not a trained model or is damaged; the base is missing or another.
        TokenizerError: Its tokenizer cannot be used.
    """
    folder = model_folder(model)
    facts = json_object(folder / FACTS, ModelError, _REMEDY)
    if facts.get("format") != MODEL_FORMAT:
        raise ModelError(
            f"{folder / FACTS} has format {facts.get('format')!r}, this version reads"
            f" {MODEL_FORMAT}; {_again(folder)}"
        )
    verify(folder, _REMEDY)
    with parsing(f"{folder / FACTS} cannot be used", ModelError, _REMEDY):
        recipe = with_current_keys(facts["recipe"])
        source = folder if recipe["tuning"]["method"] == "full" else _base(folder, facts, base)
        if source == folder and base is not None:
            raise ConfigError(f"{folder} is a whole model and has no base; leave out --base")
        output = _run_around(folder) or folder.with_name(f"{folder.name}.evaluated")
        recipe["model"] |= {"path": str(source)}
        recipe["data"] |= {"tokenizer": str(folder)}
        recipe["run"] |= {"output_dir": str(output)}
        config = config_of(recipe, overrides, folder / FACTS)
        tokenizer = CodeTokenizer(folder, facts["end_token"])
        prepared = Prepared({}, tokenizer, facts["data"])
        if not (facts["kinds"] if config.is_language else prepared.prior_C.all()):
            raise ValueError("its counts are not those of a training split")
        decision = Decision(**facts.get("decision", {}))
        numbers = [decision.threshold, decision.temperature or 1.0, *decision.thresholds]
        if not all(isinstance(one, int | float) for one in numbers):
            raise ValueError(f"its decision has {numbers}, which must be numbers")
    check_model_files(config, tokenizer.vocab_size)
    return Trained(folder, config, tokenizer, facts, decision, prepared)


def model_folder(path: Path) -> Path:
    """The folder of a trained model: a run's, or the one that is named.

    Raises:
        ConfigError: No such folder.
        ModelError: It holds no trained model; the message says what it holds, and what to do.
    """
    path = path.resolve()
    if not path.is_dir():
        raise ConfigError(f"{path} is not a folder; give a finished run, or a trained model")
    for folder in (path / MODEL, path):
        if (folder / FACTS).is_file():
            return folder
    if (path / _BEFORE / FACTS).is_file():
        raise ModelError(f"{path} holds {_BEFORE}/ of an older version; {_again(path / _BEFORE)}")
    if is_run_folder(path):
        raise ModelError(f"{path} holds no trained model yet; let the run finish")
    raise ModelError(f"{path} holds no {FACTS}; give a finished run, or its {MODEL}/")


def _again(folder: Path) -> str:
    """How a run of another version gets a model that this one reads."""
    return (
        f"train again, or run launcher/train.py {folder.parent / RECIPE}: from its checkpoints a"
        f" finished run trains nothing and writes {MODEL}/"
    )


def _run_around(folder: Path) -> Path | None:
    return folder.parent if is_run_folder(folder.parent) else None


def _base(folder: Path, facts: Mapping[str, Any], given: Path | None) -> Path:
    """The base of a model: the one that is given, that of the run around it, or where it was.

    Raises:
        ModelError: There is none, or it is another.
    """
    said = facts["base"]
    places = [folder.parent / BASE, Path(said["path"])] if given is None else [given.resolve()]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ModelError(
            f"{folder}: its base {said['name']} is not at {places[-1]}; give its folder with --base"
        )
    digest = base_digest(ModelSection(path=str(found)), facts["recipe"]["run"]["seed"])
    if digest != said["sha256"]:
        raise ModelError(
            f"{found} is not the base of {folder}: its digest is {digest}, the model was trained on"
            f" {said['name']} with {said['sha256']}; give the folder of that base with --base"
        )
    return found
