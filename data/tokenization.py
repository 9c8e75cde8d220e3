"""Functions -> token ids: whitespace, the end token, the policy for long functions."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.config import DataConfig
from data.errors import DataError
from data.records import CodeSample

_BATCH = 1024  # functions per call of the tokenizer
_END_TOKENS = ("<|endoftext|>", "</s>", "<|im_end|>", "<|end_of_text|>")  # where no file names one
_BLANKS_INSIDE = re.compile(r"(?<=\S)[ \t]+")


@dataclass(frozen=True)
class ExampleSet:
    """The token sequences of a split, flat; example e is tokens[starts[e]:starts[e + 1]].

    A function gives one example, several when it is cut into windows, none when it is dropped.

    Attributes:
        tokens: All ids, end tokens included, int32.
        starts: E + 1 offsets, int64.
        record_E: Index of the function each example came from.
        label_E: Target of the function.
        share_E: 1 / number of examples of the function, so that shares sum to functions.
        weight_E: Group weight of the function; multiplies its loss, not its count.
        num_records: Functions read, dropped ones included.
    """

    tokens: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    record_E: npt.NDArray[np.int64]
    label_E: npt.NDArray[np.int64]
    share_E: npt.NDArray[np.float64]
    weight_E: npt.NDArray[np.float64]
    num_records: int

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each example."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.record_E)


@dataclass(frozen=True)
class TokenFacts:
    """What tokenisation did to a split; token counts are those of the code, without end token."""

    num_functions: int
    num_positive: int
    tokens_mean: float
    tokens_median: float
    tokens_p90: float
    tokens_max: int
    num_long: int
    long_positive: int
    policy: str
    num_examples: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for data.json."""
        return asdict(self)


class CodeTokenizer:
    """A tokenizer.json and the token that ends a function.

    Args:
        folder: Holds tokenizer.json, and usually tokenizer_config.json.
        end_token: Overrides the end token the files name.

    Raises:
        DataError: No tokenizer.json, or no end token.
    """

    def __init__(self, folder: Path, end_token: str | None = None) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise DataError(
                f"{path} does not exist: a fast tokenizer is needed; save one with"
                " AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER), or set data.tokenizer"
            )
        self.path = path
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{path}: not a tokenizer: {error}; save it again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.end_token = end_token or _named_end_token(folder) or self._known_end_token()
        end_id = self._tokenizer.token_to_id(self.end_token)
        if end_id is None:
            raise DataError(f"{path}: the end token {self.end_token!r} is not in the vocabulary")
        self.end_id: int = end_id
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> Iterator[npt.NDArray[np.int32]]:
        """Token ids of each text, without special tokens."""
        for first in range(0, len(texts), _BATCH):
            chunk = list(texts[first : first + _BATCH])
            for encoding in self._tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
                yield np.asarray(encoding.ids, dtype=np.int32)

    def _known_end_token(self) -> str:
        for token in _END_TOKENS:
            if self._tokenizer.token_to_id(token) is not None:
                return token
        raise DataError(f"{self.path}: no end token found; name one with data.end_token")


def normalize_whitespace(code: str, mode: str) -> str:
    """The code with less whitespace.

    Args:
        code: Source text.
        mode: "none"; "lines" drops blank lines, trailing blanks and common indentation and squeezes
            blanks inside a line, so that the meaning stays; "collapse" makes every run of blanks
            and line ends one space, which joins line comments to the code after them.
    """
    if mode == "none":
        return code
    if mode == "collapse":
        return " ".join(code.split())
    code = code.replace("\r\n", "\n").replace("\r", "\n")  # dedent takes \r for text
    lines = [line.rstrip() for line in textwrap.dedent(code.expandtabs(4)).split("\n")]
    return "\n".join(_BLANKS_INSIDE.sub(" ", line) for line in lines if line)


def tokenize(
    samples: Sequence[CodeSample],
    tokenizer: CodeTokenizer,
    config: DataConfig,
    group_weights: Mapping[str, float] | None = None,
) -> tuple[ExampleSet, TokenFacts]:
    """Token ids of every function, the end token after each piece.

    Args:
        samples: Records of one split.
        tokenizer: Encodes and ends.
        config: seq_length, long_functions and normalize_whitespace.
        group_weights: Loss weight by CodeSample.status; 1 where not named.

    Returns:
        The examples and the facts of the split. A function above seq_length - 1 tokens (one is the
        end token) is dropped, cut to its head, or cut into windows that follow one another.
    """
    weights = group_weights or {}
    texts = [normalize_whitespace(s.code, config.normalize_whitespace) for s in samples]
    code_lengths = np.zeros(len(samples), dtype=np.int64)
    pieces, record, share = [], [], []
    for index, ids in enumerate(tokenizer.encode(texts)):
        code_lengths[index] = len(ids)
        cut = _cut(ids, config.seq_length - 1, config.long_functions)
        pieces += [np.append(piece, np.int32(tokenizer.end_id)) for piece in cut]
        record += [index] * len(cut)
        share += [1.0 / len(cut) for _ in cut]  # none of a dropped function
    label = np.array([s.target for s in samples], dtype=np.int64)
    weight = np.array([weights.get(s.status, 1.0) for s in samples], dtype=np.float64)
    record_E = np.array(record, dtype=np.int64)
    examples = ExampleSet(
        tokens=np.concatenate(pieces) if pieces else np.zeros(0, np.int32),
        starts=np.cumsum([0, *map(len, pieces)], dtype=np.int64),
        record_E=record_E,
        label_E=label[record_E],
        share_E=np.array(share, dtype=np.float64),
        weight_E=weight[record_E],
        num_records=len(samples),
    )
    return examples, _facts(code_lengths, label, len(pieces), config)


def _cut(ids: npt.NDArray[np.int32], limit: int, policy: str) -> list[npt.NDArray[np.int32]]:
    if len(ids) <= limit:
        return [ids]
    if policy == "drop":
        return []
    if policy == "truncate":
        return [ids[:limit]]
    return [ids[first : first + limit] for first in range(0, len(ids), limit)]


def _facts(
    lengths: npt.NDArray[np.int64],
    label: npt.NDArray[np.int64],
    num_examples: int,
    config: DataConfig,
) -> TokenFacts:
    is_long = lengths > config.seq_length - 1
    return TokenFacts(
        num_functions=len(lengths),
        num_positive=int(label.sum()),
        tokens_mean=float(lengths.mean()),
        tokens_median=float(np.median(lengths)),
        tokens_p90=float(np.percentile(lengths, 90)),
        tokens_max=int(lengths.max()),
        num_long=int(is_long.sum()),
        long_positive=int(label[is_long].sum()),
        policy=config.long_functions,
        num_examples=num_examples,
    )


def _named_end_token(folder: Path) -> str | None:
    """The eos_token of tokenizer_config.json or special_tokens_map.json, where one is named."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.is_file():
            token = json.loads(path.read_text(encoding="utf-8")).get("eos_token")
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str):
                return token
    return None
