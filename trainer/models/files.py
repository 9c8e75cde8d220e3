"""Checks a model folder by its config.json before heavy imports."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.errors import json_object, parsing
from data.readers.reading import quote
from trainer.architectures.classes import refuse_language
from trainer.architectures.families import FAMILIES, model_shape
from trainer.architectures.meta_model import transformers_config
from trainer.config.methods import SCORE_FILE, num_virtual_tokens
from trainer.config.sections import ModelSection, RunConfig, Share
from trainer.errors import ConfigError, ModelError
from trainer.models.weights import ADAPTER_CONFIG, no_config_message, weight_files

_LENGTH_KEYS = ("n_positions", "max_position_embeddings")
_USUAL_WIDTH = 2048
Size = Annotated[int, Field(ge=1, le=1 << 27)]  # 128 M positions or tokens
Layers = Annotated[int, Field(ge=1, le=10_000)]
_SAMPLE_BYTES = 4096  # of each tensor
_LONGEST_HEADER = 100 << 20  # the format's own limit
# Keys of config.json that make transformers run or load something else: what they do, what to do.
_REFUSED = {
    "auto_map": "needs its own code, which never runs here; take another base, or remove the key if"
    " transformers has this model_type itself",
    "quantization_config": "holds weights that are quantised already; take the unquantised base:"
    " tuning.method=qlora quantises it",
    "compression_config": "holds compressed weights; take the base before compression",
    "transformers_weights": "names another file of weights; rename that file to model.safetensors"
    " and remove the key",
    "configuration_files": "names other files of settings; copy the one for this transformers to"
    " config.json",
}


class _Sizes(BaseModel):
    """What is read of config.json; transformers checks the rest when it builds the model."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())

    model_type: str | None = None
    vocab_size: Size | None = None
    hidden_size: Size | None = None
    n_embd: Size | None = None
    d_model: Size | None = None
    n_inner: Size | None = None
    intermediate_size: Size | list[Size] | None = None
    head_dim: Size | None = None
    n_head: Size | None = None
    num_attention_heads: Size | list[Size] | None = None
    num_key_value_heads: Size | list[Size] | None = None
    n_layer: Layers | None = None
    num_hidden_layers: Layers | None = None
    n_positions: Size | None = None
    max_position_embeddings: Size | None = None
    resid_pdrop: Share | None = None
    attn_pdrop: Share | None = None
    attention_dropout: Share | None = None
    activation_function: str | None = None
    multi_query: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    tie_word_embeddings: bool | None = None
    is_encoder_decoder: bool | None = None
    is_decoder: bool | None = None
    architectures: list[str] | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    text_config: "_Sizes | None" = None


def check_model_files(config: RunConfig, vocab_size: int, end_id: int | None = None) -> None:
    """Refuse a model that would fail later.

    Args:
        vocab_size: Tokens of the tokenizer, added ones too.
        end_id: The token that ends every example.

    Raises:
        ModelError: Missing, pickled or remote-code weights; a vocabulary above the embedding; an
            encoder for a language task; an end token that the model does not read.
        ConfigError: data.seq_length is above the model's positions.
    """
    whole = read_config(config.model)
    values = text_values(whole)
    _refuse_class(config, values, end_id)
    if config.model.path:
        weight_files(Path(config.model.path))
    embedding = _size(whole, "vocab_size")
    if embedding is not None and vocab_size > embedding:
        raise ModelError(
            f"the tokenizer has {vocab_size} tokens, the model's embedding {embedding} rows;"
            " take the tokenizer the model was trained with (data.tokenizer)"
        )
    if error := too_long(config, positions(config.model)):
        raise error


def positions(model: ModelSection) -> int | None:
    """Most tokens that a model says it reads; None where config.json has no limit."""
    found: int | None
    found = next(filter(None, map(text_values(read_config(model)).get, _LENGTH_KEYS)), None)
    return found


def too_long(config: RunConfig, positions: int | None) -> ConfigError | None:
    """The error of rows that are longer than a model's positions, if these have a limit."""
    num_virtual = num_virtual_tokens(config.tuning)
    if not positions or config.data.seq_length + num_virtual <= positions:
        return None
    more = f" with {num_virtual} virtual tokens before it" if num_virtual else ""
    return ConfigError(
        f"data.seq_length {config.data.seq_length}{more} is above the model's {positions} positions"
        f" ({config.model.config_file}); lower it to {positions - num_virtual} or less"
    )


def text_values(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json about the text model, which trains without the other parts."""
    text = values.get("text_config")
    return text if isinstance(text, dict) and not values.get("is_encoder_decoder") else values


def _refuse_class(config: RunConfig, values: Mapping[str, Any], end_id: int | None) -> None:
    """What config.json alone says about the task; transformers' own tables follow at loading."""
    both, kind = bool(values.get("is_encoder_decoder")), str(values.get("model_type"))
    named = any(str(name).endswith("ForMaskedLM") for name in values.get("architectures") or ())
    if config.is_language and (both or (named and not values.get("is_decoder"))):
        raise refuse_language(kind, is_encoder_decoder=both)
    ends = values.get("eos_token_id")
    if (
        both
        and None not in (ends, end_id)
        and end_id not in (ends if isinstance(ends, list) else [ends])
    ):
        raise ModelError(
            f"{config.model.config_file}: eos_token_id {ends} is not the id {end_id} of the token"
            f" that ends every function, and the head of {kind} reads the former; set"
            " data.end_token to the model's end token"
        )


def read_config(model: ModelSection) -> dict[str, Any]:
    """The content of the base's config.json.

    Raises:
        ModelError: It is missing, not JSON, a value that is read is of another kind, or a key loads
            something else.
    """
    path = model.config_file
    values = config_values(path)
    for block in (values, *(value for value in values.values() if isinstance(value, dict))):
        for key, meaning in _REFUSED.items():
            if block.get(key):  # null and {} say that there is none
                raise ModelError(f"{path}: {key} {str(block[key])[:60]}: the model {meaning}")
    return values


def refuse_adapter(model: ModelSection) -> None:
    """Say that model.path is an adapter, before its missing tokenizer is blamed."""
    folder = model.config_file.parent
    if not model.config_file.is_file() and (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(no_config_message(folder))


def config_values(path: Path) -> dict[str, Any]:
    """The content of any config.json.

    Raises:
        ModelError: It is missing or not JSON.
    """
    if not path.is_file():
        raise ModelError(no_config_message(path.parent))
    values = json_object(path, ModelError, "fetch it again")
    try:
        _Sizes.model_validate(values)
    except ValidationError as error:
        faults = (
            f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}, found"
            f" {quote(fault['input'])}; fetch the file again"
            for fault in error.errors()
        )
        raise ModelError("\n".join(faults)) from error
    return values


def hidden_size(model: ModelSection) -> int:
    """Width of the base model, for the cost of a row."""
    return _size(read_config(model), "hidden_size") or _USUAL_WIDTH


def _size(values: Mapping[str, Any], key: str) -> int | None:
    """A size of the text model, under its usual name or the one that transformers knows.

    A type that is known without transformers saves its import, of seconds.
    """
    size = text_values(values).get(key)
    if size is None and values.get("model_type") in FAMILIES:
        shape = model_shape(values)
        size = {"vocab_size": shape.vocabulary, "hidden_size": shape.hidden}[key]
    if size is None:
        size = getattr(transformers_config(values).get_text_config(), key, None)
    return size


def base_digest(model: ModelSection, seed: int) -> str:
    """sha256 of config.json, the headers and a sample of every tensor; it identifies a base.

    Reading all of a 30 GB base at every start would take minutes. Headers hold names, shapes and
    places; the samples differ between fine-tunes of one base. A base without files is drawn from
    the seed.
    """
    digest = hashlib.sha256(model.config_file.read_bytes())
    if model.config:
        digest.update(f"random weights of seed {seed}".encode())
        return digest.hexdigest()
    folder = model.config_file.parent
    for path in (*weight_files(folder), *folder.glob(SCORE_FILE)):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        _sample_tensors(path, digest)
    return digest.hexdigest()


def _sample_tensors(path: Path, digest: Any) -> None:
    """Feed a digest the header of a safetensors file and the middle of each of its tensors.

    Layout: 8 bytes little-endian length, that many bytes of JSON, then the tensors, whose
    data_offsets count from the end of the JSON.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(_LONGEST_HEADER, path.stat().st_size):
            raise ModelError(f"{path}: the header claims {length} bytes; fetch the file again")
        header = stream.read(length)
        digest.update(header)
        with parsing(f"{path}: not a safetensors file", ModelError, "fetch it again"):
            tensors = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
            for first, last in sorted(tuple(each["data_offsets"]) for each in tensors.values()):
                stream.seek(8 + length + (first + last) // 2)
                digest.update(stream.read(min(_SAMPLE_BYTES, last - first)))
