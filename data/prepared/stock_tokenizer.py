"""Any tokenizer that transformers loads -> a folder whose tokenizer.json gives the same ids.

A folder can hold other files than tokenizer.json (vocab.json and merges.txt, vocab.txt), or name a
class that replaces rules of tokenizer.json (Qwen2Tokenizer its digits). Both are settled once and
kept beside the prepared data, because importing transformers takes seconds.
"""

import atexit
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.errors import TokenizerError, file_text, json_object, parsing
from data.prepared.cache import cached, default_root, read_facts
from data.readers import file_digest
from data.text.tokenizer import MOST_BYTES, CodeTokenizer, companion, tokenizer_of

TOKENIZER_FILES = (  # as tokenizers of transformers name their files
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "additional_chat_templates/*.jinja", "vocab*", "merges.txt", "*.model",
    "*.tiktoken", "*.spm", "*.bpe",
)  # fmt: skip
_VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "*.spm", "*.bpe")
_AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes without rules of their own
_GIVEN = "as_given.json"  # the tokenizer.json that the class changes
_DECIDE_IDS = ("normalizer", "pre_tokenizer", "model", "added_tokens")
_OF_THE_CALL = ("is_local", "local_files_only")  # settings that save_pretrained writes down
_NUM_TEXTS, _NUM_SHOWN = 200, 6
_REMEDY = (
    "save a fast tokenizer with AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER) where"
    " it loads, and set data.tokenizer"
)


def stock_folder(config: DataConfig, folder: Path) -> Path:
    """The folder itself where its tokenizer.json gives stock's ids, else one made from it.

    Raises:
        TokenizerError: The folder has no tokenizer.json, and transformers cannot make one.
    """
    if not _files(folder, _VOCABULARIES) or _is_plain(folder):
        return folder
    files = _files(folder, ("config.json", *TOKENIZER_FILES))
    content = {
        "tokenizer": {path.name: file_digest(path) for path in files},
        "versions": {name: version(name) for name in ("tokenizers", "transformers")},
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def build(made: Path) -> dict[str, Any]:
        return _settle(folder, made)

    try:
        entry = cached(Path(config.cache_dir) if config.cache_dir else default_root(), key, build)
    except OSError:  # a finished run is read where nothing can be written
        entry = cached(_temporary(), key, build)
    return entry if read_facts(entry)["is_made"] else folder


def difference(tokenizer: CodeTokenizer, texts: Iterator[str]) -> str | None:
    """How often, and where first, the given tokenizer.json has other ids than stock's."""
    given_path = tokenizer.path.with_name(_GIVEN)
    if not given_path.is_file():
        return None
    given, stock = (
        tokenizer_of(file_text(path, TokenizerError, _REMEDY, MOST_BYTES))
        for path in (given_path, tokenizer.path)
    )
    num, differing, example = 0, 0, ""
    for text, _ in zip(texts, range(_NUM_TEXTS), strict=False):
        ours, theirs = (t.encode(text, add_special_tokens=False).tokens for t in (given, stock))
        num += 1
        if ours != theirs:
            differing += 1
            example = example or _first_difference(ours, theirs)
    name = companion(tokenizer.path.with_name("tokenizer_config.json")).get("tokenizer_class")
    return (
        f"ids are those of {name}, the class that transformers takes, not of tokenizer.json alone:"
        f" {differing} of {num} texts differ{example}"
    )


def decoded(tokenizer: CodeTokenizer, tokens: Any, starts: Any) -> Iterator[str]:
    """The texts of examples, one after the other."""
    return (tokenizer.decode(tokens[a:b].tolist()) for a, b in pairwise(starts))


def _first_difference(ours: list[str], theirs: list[str]) -> str:
    same = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
    shown = (tokens[same : same + _NUM_SHOWN] for tokens in (theirs, ours))
    return ", e.g. {} instead of {}".format(*shown)


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file()})


def _is_plain(folder: Path) -> bool:
    """Whether tokenizer.json is used as it is, without asking transformers."""
    if not (folder / "tokenizer.json").is_file():
        return False
    named = companion(folder / "tokenizer_config.json").get("tokenizer_class")
    if named is None:  # transformers takes the class of config.json's model type
        return not (folder / "config.json").is_file()
    return named in _AS_IT_IS


def _settle(folder: Path, made: Path) -> dict[str, Any]:
    """Fill a folder with stock's tokenizer, unless tokenizer.json gives the same ids already."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        with parsing(f"{path} does not exist, and none can be made", TokenizerError, _REMEDY):
            _save(_stock(folder), made)
        return {"is_made": True}
    given = file_text(path, TokenizerError, "save the tokenizer again", MOST_BYTES)
    try:
        with parsing(str(folder), TokenizerError, "tokenizer.json is used as it is"):
            stock = _stock(folder)
            if _rules(given) == _rules(stock.backend_tokenizer.to_str()):
                return {"is_made": False}
            _save(stock, made)
    except TokenizerError as error:
        sys.stderr.write(f"transformers does not load the tokenizer: {error}\n")
        shutil.rmtree(made)
        made.mkdir()
        return {"is_made": False}
    shutil.copyfile(path, made / _GIVEN)
    return {"is_made": True}


def _stock(folder: Path) -> Any:
    """The tokenizer as transformers loads it, without code from the folder."""
    try:
        from transformers import AutoTokenizer

        stock = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except ImportError as error:  # of a package that only some tokenizers need
        raise ValueError(str(error)) from error
    names = [n for kind, n in stock.vocab_files_names.items() if kind != "tokenizer_file"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing and not (folder / "tokenizer.json").is_file():
        # without it the class starts with a vocabulary of a few tokens, and no error
        raise ValueError(f"{type(stock).__name__} also reads {', '.join(missing)}, not there")
    if not hasattr(stock, "backend_tokenizer"):
        raise ValueError(f"{type(stock).__name__} has no fast version")
    return stock


def _save(stock: Any, made: Path) -> None:
    stock.save_pretrained(made)
    stock.backend_tokenizer.save(str(made / "tokenizer.json"))
    path = made / "tokenizer_config.json"
    values = json_object(path, TokenizerError, "save it again")
    kept = {key: value for key, value in values.items() if key not in _OF_THE_CALL}
    path.write_text(json.dumps(kept, indent=2), encoding="utf-8")


def _rules(text: str) -> dict[str, Any]:
    """What decides the ids, and what is put around a text; unset rules are left out."""
    tokenizer = tokenizer_of(text)
    values = json.loads(tokenizer.to_str())
    parts = {name: values[name] for name in _DECIDE_IDS}
    parts["model"] = {rule: value for rule, value in parts["model"].items() if value}
    return parts | {"around": tokenizer.encode("a").ids}


@cache
def _temporary() -> Path:
    """A folder of this process."""
    folder = tempfile.mkdtemp(prefix="focaltune-tokenizer-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
