"""Finds the checkpoint from which a run continues, and checks that it fits the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.prepared.prepare import Prepared
from trainer.config.renamed import with_current_keys
from trainer.config.sections import RunConfig, default_of
from trainer.errors import ConfigError, ModelError
from trainer.models.files import base_digest
from trainer.run_folder.checkpoint import Checkpoint, load_checkpoint, load_step, newest_checkpoint
from trainer.run_folder.folder import CHECKPOINTS

if TYPE_CHECKING:
    from trainer.engine.state import TrainState  # imports torch

# A change in these sections makes it another run; the others say where and how to compute.
DECISIVE = ("model", "data", "task", "tuning", "loss", "optim")
_DECISIVE_KEYS = (
    ("run", "seed"), ("engine", "precision"), ("replication", "detach_modulator"),
    ("eval", "metric"),
)  # fmt: skip
_FREE = {
    # Paths may move: the digests of their content are compared instead.
    "data.path", "data.train", "data.valid", "data.test", "data.tokenizer",
    "data.cache_dir", "data.end_token",
    "model.path", "model.config", "model.quantize_cache",
    # What is refused before a run: the rows of files that are not refused are the same.
    "data.allow_leaks", "data.leak_groups", "data.max_bad_rows",
    # How a step is computed, which users change after running out of memory.
    "optim.micro_batch_size", "model.attention", "model.gradient_checkpointing", "loss.backend",
    "tuning.lora_backend",
}  # fmt: skip


def find_checkpoint(config: RunConfig) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint that run.resume names, and lines about skipped ones.

    Raises:
        ModelError: An explicit path does not verify, or no checkpoint of the run does.
        ConfigError: An explicit path would overwrite newer checkpoints of its run.
    """
    if config.run.resume == "never":
        return None, []
    folder = config.output_dir / CHECKPOINTS
    found, passed_over = newest_checkpoint(folder)
    if config.run.resume != "auto":
        chosen = load_checkpoint(Path(config.run.resume))
        if found is None or found.step <= chosen.step:
            return chosen, []
        if chosen.path.parent == folder:
            raise ConfigError(
                f"run.resume {chosen.path} is not the newest of its run, which is at step"
                f" {found.step}: give the branch a run.output_dir of its own"
            )
        return found, [f"the branch from {chosen.path} has begun: it continues where it was"]
    if found is None and passed_over:
        raise ModelError(
            "no checkpoint of this run verifies: " + "; ".join(passed_over) + ". Nothing was"
            " touched: choose another run.output_dir to train from the start"
        )
    return found, [f"passed over {line}" for line in passed_over]


def initial_state(config: RunConfig, checkpoint: Checkpoint | None) -> "TrainState":
    """The counters a run starts with.

    The best validation is looked for anew if its checkpoint does not verify here, or if another
    eval.metric chose it.
    """
    from trainer.engine.state import TrainState

    if checkpoint is None:
        return TrainState()
    state = TrainState.of(checkpoint.trainer["state"])
    if checkpoint.trainer["recipe"].get("eval", {}).get("metric", "auto") != config.eval.metric:
        state.best_step, state.best_score, state.num_worse = None, None, 0
    if state.best_step is not None:
        try:
            load_step(config.output_dir / CHECKPOINTS, state.best_step)
        except ModelError:
            state.best_step, state.best_score, state.num_worse = None, None, 0
    return state


def run_identity(config: RunConfig, prepared: Prepared) -> dict[str, str]:
    """Digests that must be equal to continue: base, tokenizer, its end token, three files."""
    end_token = prepared.tokenizer.end_token
    return {
        "base": base_digest(config.model, config.run.seed),
        "end_token": end_token,
        **prepared.digests,
    }


def moved_lines(checkpoint: Checkpoint, world_size: int) -> list[str]:
    """A line where the number of ranks has changed."""
    before = checkpoint.trainer["world_size"]
    if before == world_size:
        return []
    return [
        f"written by {before} ranks, continued by {world_size}: same state, same rows in the same"
        " steps; dropout draws other numbers"
    ]


def batches_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The keys that made steps of rows before the checkpoint."""
    optim = with_current_keys(checkpoint.trainer["recipe"])["optim"]
    return {key: optim[key] for key in ("global_batch_size", "batch_unit") if key in optim}


def kept_rows(config: RunConfig, checkpoint: Checkpoint | None, world_size: int) -> int | None:
    """Rows of a micro-batch that auto settled when the run began, on as many ranks; else None.

    Dropout draws by the micro-batch, so another number would change the losses.
    """
    if checkpoint is None or checkpoint.trainer["world_size"] != world_size:
        return None
    before = with_current_keys(checkpoint.trainer["recipe"])["optim"].get("micro_batch_size")
    if not before == config.optim.micro_batch_size == "auto":
        return None
    return int(checkpoint.trainer["micro_batch_size"])


def refuse_other_run(
    checkpoint: Checkpoint, config: RunConfig, identity: Mapping[str, Any]
) -> list[str]:
    """Compare a checkpoint with the run that continues it.

    Returns:
        Lines about accepted changes.

    Raises:
        ModelError: Another base, tokenizer or dataset.
        ConfigError: A decisive key of the recipe differs, without run.accept_changes; or one that
            decides what the rows of an epoch are, or what a method's weights mean.
    """
    changes = config_changes(checkpoint.trainer["recipe"], config.to_json())
    if changes and not config.run.accept_changes:
        raise ConfigError(
            "the recipe differs from the checkpoint's:\n  "
            + "\n  ".join(changes)
            + "\nrestore these values, or set run.accept_changes=true to continue with the new ones"
        )
    # data.* decide what an example is and which share a row, the seed their order
    others = {
        ("run.seed: ", "data."): "the examples of an epoch would be others, so some would be"
        " skipped or repeated",
        ("tuning.peft: ",): "the trained weights would mean something else",
    }
    for keys, why in others.items():
        if not (odd_lines := [line for line in changes if line.startswith(keys)]):
            continue
        raise ConfigError(
            f"{why}:\n  "
            + "\n  ".join(odd_lines)
            + "\nrestore these values; or begin a run with another run.output_dir and"
            f" tuning.init_from={checkpoint.path.parents[1]}"
        )
    odd = [key for key, value in identity.items() if checkpoint.identity.get(key) != value]
    if odd:
        raise ModelError(
            f"checkpoint {checkpoint.path} was made with another {', '.join(odd)}; restore the"
            " files, or choose another run.output_dir to train from the start"
        )
    return [f"accepted change {line}" for line in changes]


def config_changes(
    saved: Mapping[str, Any], given: Mapping[str, Any], sections: Sequence[str] = DECISIVE
) -> list[str]:
    """Decisive keys of these sections that differ, as "optim.lr: 0.001 -> 0.002".

    Args:
        saved: The recipe of a run, perhaps one of an older version, which did what the defaults of
            later keys say.
    """
    saved = with_current_keys(saved)
    pairs = [
        (f"{section}.{key}", saved.get(section, {}).get(key, default_of(section, key)), value)
        for section in sections
        for key, value in given[section].items()
    ]
    for section, key in _DECISIVE_KEYS:
        old = saved[section].get(key, default_of(section, key))
        pairs.append((f"{section}.{key}", old, given[section][key]))
    return [
        f"{name}: {old} -> {new}" for name, old, new in pairs if old != new and name not in _FREE
    ]
