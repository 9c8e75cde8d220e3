"""A trained language model that answers in a terminal, or the questions of a pipe."""

import math
import sys
from contextlib import redirect_stdout
from pathlib import Path

from trainer.config.methods import num_virtual_tokens
from trainer.errors import ConfigError
from trainer.models.files import positions
from trainer.processes.imports import stack_imports
from trainer.run.commands import without_unused
from trainer.run.trained import open_trained


def chat_with(
    model: Path, base: Path | None, system: str, tokens: int, temperature: float, seed: int,
    *, engine: str = "auto",
) -> int:  # fmt: skip
    """Answer what stdin says; only answers go to stdout. Returns the exit code.

    Args:
        model: A finished run, or a trained model's folder.
        base: Its folder, where that has moved.
        system: Comes before every conversation; "" for nothing.
        tokens: Most tokens of an answer.
        temperature: 0 takes the most likely token; else one is drawn, by `seed`.
        seed: Of what is drawn.
        engine: "own", "vllm", or "auto": vLLM where it can.

    Raises:
        ConfigError: An option out of range, a model that does not write, or not with vLLM.
        ModelError: The folder holds no trained model, or its base is missing or another.
    """
    if tokens < 1 or not 0 <= temperature < math.inf or seed < 0:
        raise ConfigError("--tokens is at least 1, --temperature and --seed are at least 0")
    trained = open_trained(model, base)
    config, data = trained.config, trained.config.data
    if not config.is_language:
        raise ConfigError(
            f"{model} is a classifier and writes nothing; score files with evaluate.py"
        )
    without_unused(config)
    with stack_imports():
        from trainer.generation.chat import Chat, converse
        from trainer.generation.decoding import Limits, Writer
        from trainer.generation.prompts import asked_as
        from trainer.generation.vllm_writer import VllmWriter, takes_vllm
        from trainer.run.build import alone, resolve_here

    ranks = alone()
    most = positions(config.model)
    room = most - num_virtual_tokens(config.tuning) if most else data.seq_length
    writer: Writer | VllmWriter
    with redirect_stdout(sys.stderr):
        if takes_vllm(engine, config, trained.folder, ranks, temperature):
            settled = resolve_here(config, ranks.device).config
            writer = VllmWriter(settled, trained.folder, ranks, room)
        else:
            writer = Writer(trained.load(ranks), ranks.device)
    limits = Limits(room, tokens, temperature, seed)
    kind, thinks = asked_as(trained.prepared)
    return converse(Chat(writer, limits, trained.tokenizer, data, kind, thinks, system))
