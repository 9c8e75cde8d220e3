"""Functions -> token ids: whitespace, the policy for long functions, the tokens around each."""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from data.config import DataConfig
from data.errors import DataError
from data.text.labels import Classes
from data.text.pairs import pair_shares
from data.text.tokenizer import CodeTokenizer

TokenIds: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.int32]
Tokens = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

TOKENS_FORMAT = 5
"""Part of the key of prepared data. Raise it with a change after which the same files and settings
give other records, tokens or masks, or another layout on disk."""

_BLOCK = 65_536  # examples counted at a time
_BLANKS_INSIDE = re.compile(r"(?<=\S)[ \t]+")


@dataclass(frozen=True)
class ExampleSet:
    """The token sequences of a split, flat; example e is tokens[starts[e]:starts[e + 1]].

    A record (function, conversation, document) gives one example, several when it is cut into
    windows, none when it is dropped.

    Attributes:
        tokens: All ids, begin and end tokens included, uint16 or int32, possibly a file in memory.
        starts: E + 1 offsets, int64.
        record_E: Index of the record each example came from, ascending.
        label_E: Target of the function (data/text/labels.py); 0 for language.
        share_E: 1 / number of examples of the record, so that shares sum to records; 1 of texts,
            whose windows are examples of their own.
        weight_E: Weight of the function's class and group; multiplies its loss, not its count.
        num_records: Records read, dropped ones included.
        supervised: Which tokens are targets of a language task, parallel to tokens; None where the
            targets are label_E.
        members_KC: Where several classes can hold at once: which of them (C) each target (K) holds.
    """

    tokens: TokenIds
    starts: npt.NDArray[np.int64]
    record_E: npt.NDArray[np.int64]
    label_E: npt.NDArray[np.int32]
    share_E: npt.NDArray[np.float64]
    weight_E: npt.NDArray[np.float32]
    num_records: int
    supervised: npt.NDArray[np.bool_] | None = None
    members_KC: npt.NDArray[np.bool_] | None = None

    @cached_property
    def rarest_E(self) -> npt.NDArray[np.int64]:
        """Class of each example; of several at once the rarest, and C where none holds."""
        if self.members_KC is None:
            return self.label_E.astype(np.int64)
        share_K = np.bincount(self.label_E, self.share_E, len(self.members_KC))
        size_C = share_K @ self.members_KC
        size_KC = np.where(self.members_KC, size_C, np.inf)
        none = np.isinf(size_KC).all(axis=1)
        rarest_K = np.where(none, len(size_C), size_KC.argmin(axis=1))
        rarest_E: npt.NDArray[np.int64] = rarest_K[self.label_E]
        return rarest_E

    @cached_property
    def count_E(self) -> npt.NDArray[np.float64]:
        """What each example adds to the number its loss sum is divided by.

        Its share of a function; or its targets: the supervised tokens that follow another one, for
        nothing predicts the first.
        """
        if self.supervised is None:
            return self.share_E
        return targets_of(self.supervised, self.starts).astype(np.float64)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each example."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.record_E)

    def subset(self, chosen: npt.NDArray[np.int64]) -> "ExampleSet":
        """Some of the examples, copied into memory."""
        places = [slice(self.starts[e], self.starts[e + 1]) for e in chosen]
        pieces = [self.tokens[place] for place in places]
        masks = None if self.supervised is None else [self.supervised[p] for p in places]
        return ExampleSet(
            tokens=np.concatenate(pieces).astype(np.int32),
            starts=np.cumsum([0, *map(len, pieces)], dtype=np.int64),
            record_E=self.record_E[chosen],
            label_E=self.label_E[chosen],
            share_E=self.share_E[chosen],
            weight_E=self.weight_E[chosen],
            num_records=self.num_records,
            supervised=None if masks is None else np.concatenate(masks),
            members_KC=self.members_KC,
        )


@dataclass(frozen=True)
class TokenFacts:
    """What tokenisation did to a split; token counts are those of the code alone.

    Long functions do not fit in seq_length, oversized ones are above max_function_bytes. The counts
    are by class.
    """

    num_functions: int
    class_counts: list[int]
    tokens_mean: float
    tokens_median: float
    tokens_p90: float
    tokens_max: int
    num_long: int
    long_counts: list[int]
    num_oversized: int
    oversized_counts: list[int]
    policy: str
    num_examples: int


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
    code = code.replace("\r", "\n")  # dedent takes \r for text; blank lines go below
    lines = [line.rstrip() for line in textwrap.dedent(code.expandtabs(4)).split("\n")]
    return "\n".join(_BLANKS_INSIDE.sub(" ", line) for line in lines if line)


@dataclass(frozen=True)
class Pieces:
    """The examples of a few records, flat.

    Attributes:
        tokens: Ids of all examples one after the other, begin and end tokens included.
        lengths_E: Tokens of each example, at most seq_length.
        record_E: Which of the records each came from, counted from 0.
        code_lengths_N: Tokens of each whole function's code, or of each whole language record with
            all of them; -1 where it was not tokenised.
        supervised: Which tokens are targets, parallel to tokens; None for functions.
        num_unsupervised: Examples dropped because the cut left nothing of an answer in them.
        refused: Place of a record that the chat template cannot write -> why; the other fields
            count without it.
        num_split: Records that became an example for each of several answers.
        control_tokens: The first special token of every record that writes one in its own text and
            has it read as such.
    """

    tokens: TokenIds
    lengths_E: npt.NDArray[np.int64]
    record_E: npt.NDArray[np.int64]
    code_lengths_N: npt.NDArray[np.int32]
    supervised: npt.NDArray[np.bool_] | None = None
    num_unsupervised: int = 0
    refused: Mapping[int, str] = field(default_factory=dict)
    control_tokens: Sequence[str] = ()
    num_split: int = 0


def targets_of(
    supervised: npt.NDArray[np.bool_], starts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Supervised tokens of each example that are not its first.

    Args:
        supervised: Of all examples, one after the other.
        starts: E + 1 offsets; no example is empty.
    """
    counts = np.zeros(len(starts) - 1, np.int64)
    for first in range(0, len(counts), _BLOCK):  # a memory map stays one
        heads = starts[first : first + _BLOCK]
        heads, end = heads[: len(counts) - first], starts[min(first + _BLOCK, len(counts))]
        mask = supervised[heads[0] : end]
        sums = np.add.reduceat(mask, heads - heads[0], dtype=np.int64)
        counts[first : first + len(sums)] = sums - mask[heads - heads[0]]
    return counts


def encode_functions(
    codes: Sequence[str],
    tokenizer: CodeTokenizer,
    config: DataConfig,
    seconds: Sequence[str] = (),
) -> Pieces:
    """Token ids of functions; each piece begins and ends as a text of its own.

    The two functions of a pair are one text, with what the tokenizer puts between two.

    Args:
        codes: Source texts.
        tokenizer: Encodes and ends.
        config: seq_length, long_functions, window_overlap, normalize_whitespace and
            max_function_bytes: a longer text is dropped unread.
        seconds: The second functions; "" where there is none.

    Raises:
        DataError: Windows that overlap whole, or windows of a pair.
    """

    def encoded(texts: Sequence[str]) -> list[Tokens | None]:
        is_short_T = [_num_bytes(text) <= config.max_function_bytes for text in texts]
        mode = config.normalize_whitespace
        short = [normalize_whitespace(text, mode) for text in compress(texts, is_short_T)]
        ids = tokenizer.encode(short)
        return [next(ids) if is_short else None for is_short in is_short_T]

    whole_N = encoded(codes)
    length_N = [-1 if ids is None else len(ids) for ids in whole_N]
    between = np.array(tokenizer.between_ids, np.int32)
    room = config.seq_length - tokenizer.num_added
    pairs = [n for n, second in enumerate(seconds) if second]
    for n, second in zip(pairs, encoded([seconds[n] for n in pairs]), strict=True):
        first = whole_N[n]
        if first is None or second is None:
            whole_N[n], length_N[n] = None, -1
            continue
        length_N[n] += len(between) + len(second)
        whole_N[n] = _paired(first, second, between, room, config.long_functions)
    every = np.ones(max([0, *length_N]), np.bool_)  # one mask for all: masks are not kept
    masked_N = (None if ids is None else (ids, every[: len(ids)]) for ids in whole_N)
    pieces = cut_records(masked_N, tokenizer, config, are_texts=True)
    return replace(pieces, code_lengths_N=np.array(length_N, np.int32))


def _paired(first: Tokens, second: Tokens, between: Tokens, room: int, policy: str) -> Tokens:
    """Two texts as one, each cut by the policy to its share where both do not fit."""
    room -= len(between)
    if len(first) + len(second) > room and policy != "drop":
        if policy == "window":
            raise DataError(
                "data.long_functions=window cuts a function into pieces, but the two of a pair are"
                " read together; take truncate, truncate_left, truncate_middle or drop"
            )
        kept = pair_shares(len(first), len(second), room)
        first, second = (
            cut(ids, np.ones(len(ids), np.bool_), limit, policy)[0][0]
            for ids, limit in zip((first, second), kept, strict=True)
        )
    return np.concatenate([first, between, second])


def cut_records(
    whole_N: Iterable[tuple[Tokens, Mask] | None],
    tokenizer: CodeTokenizer,
    config: DataConfig,
    *,
    are_texts: bool,
) -> Pieces:
    """The pieces that are kept of records, by data.long_functions.

    Args:
        whole_N: All ids of each record and which of them are supervised; None for one unread.
        tokenizer: Begins and ends a text.
        config: seq_length, long_functions and window_overlap.
        are_texts: Every piece is put between the tokens that begin and end a text, and masks are
            not kept. Otherwise the ids hold them, and a piece in which nothing is supervised is
            dropped and counted.

    Raises:
        DataError: Windows that overlap whole.
    """
    around = [tokenizer.begin_ids, [tokenizer.end_id]] if are_texts else [[], []]
    before, after = (np.array(ids, dtype=np.int32) for ids in around)
    num_added = len(before) + len(after)
    limit, overlap = config.seq_length - num_added, config.window_overlap
    if overlap >= limit:
        raise DataError(
            f"data.window_overlap={overlap} must be below {limit}: data.seq_length"
            + (f" less the {num_added} tokens that are added to each" if num_added else "")
        )
    if not are_texts:  # or the first token of every window would be nobody's target
        overlap = max(1, overlap)
    parts, masks, lengths_E, record_E, lengths_N = [before[:0]], [], [], [], []
    num_unsupervised = 0
    for index, whole in enumerate(whole_N):
        lengths_N.append(-1 if whole is None else len(whole[0]))
        for ids, mask in cut(*whole, limit, config.long_functions, overlap) if whole else ():
            if are_texts:
                parts += [before, ids, after]
            elif mask.any():
                parts.append(ids)
                masks.append(mask)
            else:
                num_unsupervised += 1
                continue
            lengths_E.append(len(ids) + num_added)
            record_E.append(index)
    return Pieces(
        tokens=np.concatenate(parts),
        lengths_E=np.array(lengths_E, dtype=np.int64),
        record_E=np.array(record_E, dtype=np.int64),
        code_lengths_N=np.array(lengths_N, dtype=np.int32),
        supervised=None if are_texts else np.concatenate([np.zeros(0, np.bool_), *masks]),
        num_unsupervised=num_unsupervised,
    )


def cut(
    ids: Tokens, mask: Mask, limit: int, policy: str, overlap: int = 0
) -> list[tuple[Tokens, Mask]]:
    """What is kept of a record, as pieces of at most `limit` tokens with their masks.

    Args:
        ids: All its tokens.
        mask: Which are supervised.
        limit: Above it the policy applies.
        policy: "drop" none; "truncate" the head, "truncate_left" the tail; "truncate_middle" half
            of each, where the first token after the gap is not a target; "window" pieces that
            follow one another.
        overlap: Tokens that a window repeats of the one before it, below `limit`: as context, for
            they are supervised once.
    """
    if len(ids) <= limit:
        return [(ids, mask)]
    if policy == "drop":
        return []
    if policy == "window":
        windows = []
        for first in range(0, len(ids) - overlap, limit - overlap):
            learned = mask[first : first + limit].copy()
            learned[: overlap if first else 0] = False
            windows.append((ids[first : first + limit], learned))
        return windows
    tail = {"truncate": 0, "truncate_middle": limit // 2, "truncate_left": limit}[policy]
    head, end = limit - tail, len(ids) - tail
    learned = np.concatenate([mask[:head], mask[end:]])
    if head and tail:
        learned[head] = False
    return [(np.concatenate([ids[:head], ids[end:]]), learned)]


def token_facts(
    code_lengths_N: npt.NDArray[np.int32],
    target_N: npt.NDArray[np.int32],
    num_examples: int,
    config: DataConfig,
    num_added: int,
    classes: Classes | None = None,
) -> TokenFacts:
    """Counts of a split.

    Args:
        code_lengths_N: Tokens of each function's code; -1: never tokenised.
        target_N: Its target.
        num_examples: What they became.
        config: seq_length and long_functions.
        num_added: Tokens the tokenizer adds to each.
        classes: What the targets mean.
    """
    counts = (classes or Classes()).counts
    is_oversized = code_lengths_N < 0
    is_long = code_lengths_N > config.seq_length - num_added
    lengths = code_lengths_N[~is_oversized]
    if not len(lengths):
        lengths = np.zeros(1, np.int32)
    return TokenFacts(
        num_functions=len(code_lengths_N),
        class_counts=counts(target_N),
        tokens_mean=float(lengths.mean()),
        tokens_median=float(np.median(lengths)),
        tokens_p90=float(np.percentile(lengths, 90)),
        tokens_max=int(lengths.max()),
        num_long=int(is_long.sum()),
        long_counts=counts(target_N[is_long]),
        num_oversized=int(is_oversized.sum()),
        oversized_counts=counts(target_N[is_oversized]),
        policy=config.long_functions,
        num_examples=num_examples,
    )


def _num_bytes(code: str) -> int:
    return len(code) if code.isascii() else len(code.encode("utf-8", "surrogatepass"))
