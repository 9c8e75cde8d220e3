"""What a model folder must hold, read from its config.json before anything heavy is imported."""

import hashlib
import json
from pathlib import Path
from typing import Any

from trainer.config import RunConfig
from trainer.errors import ConfigError, ModelError

_LENGTH_KEYS = ("n_positions", "max_position_embeddings")
_HEADER_BYTES = 1 << 20  # of each weight file: names, shapes and the first values


def check_model_files(config: RunConfig, vocab_size: int) -> dict[str, Any]:
    """Read config.json and refuse what could only fail later.

    Args:
        config: The run.
        vocab_size: Of the tokenizer, added tokens included.

    Returns:
        The model's config.json.

    Raises:
        ModelError: Missing, pickled or remote-code weights; a vocabulary above the embedding.
        ConfigError: data.seq_length is above the model's positions.
    """
    source = Path(config.model.path or config.model.config or "")
    path = source / "config.json" if source.is_dir() else source
    if not path.is_file():
        raise ModelError(f"{path} does not exist; a base model needs its config.json")
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "auto_map" in values:
        raise ModelError(f"{path} needs code of its own (auto_map); such models are never run")
    if config.model.path and not list(source.glob("*.safetensors")):
        raise ModelError(
            f"{source} holds no .safetensors file; convert its weights with"
            " save_pretrained(FOLDER, safe_serialization=True)"
        )
    embedding = values.get("vocab_size")
    if embedding is not None and vocab_size > embedding:
        raise ModelError(
            f"the tokenizer has {vocab_size} tokens, the model's embedding {embedding} rows;"
            " take the tokenizer the model was trained with (data.tokenizer)"
        )
    limit = next((values[key] for key in _LENGTH_KEYS if key in values), None)
    if limit is not None and config.data.seq_length > limit:
        raise ConfigError(
            f"data.seq_length {config.data.seq_length} is above the model's {limit} positions"
            f" ({path}); lower it to {limit} or less"
        )
    return values


def base_digest(config: RunConfig) -> str:
    """sha256 that tells one base from another: config.json and the head of every weight file.

    Reading all of a 30 GB base at every start would take minutes; the head holds every tensor's
    name, shape and place, and the sizes are in too.
    """
    folder = config.model_folder
    digest = hashlib.sha256()
    if config.model.config:
        digest.update(
            Path(config.model.config).read_bytes()
            if Path(config.model.config).is_file()
            else (folder / "config.json").read_bytes()
        )
        digest.update(f"random weights of seed {config.run.seed}".encode())
        return digest.hexdigest()
    digest.update((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(_HEADER_BYTES))
    return digest.hexdigest()
