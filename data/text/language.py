"""Conversations and documents -> token ids, and which of them are to be learned."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from data.config import DataConfig
from data.errors import DataError
from data.records import Conversation, Document
from data.text.chat import RecordRefused
from data.text.escaping import escaped
from data.text.own_template import naming_template, own_template, uses_tools
from data.text.templates import Span, render
from data.text.tokenization import Mask, Pieces, Tokens, cut_records, targets_of
from data.text.tokenizer import CodeTokenizer

if TYPE_CHECKING:
    from rich.text import Text
    from tokenizers import Tokenizer

_BLOCK_CHARACTERS = 1 << 20  # of a document, tokenised at a time: bounded memory
_NUM_BINS = 10  # of the histogram of supervised shares

_MAX_CHARACTER_TOKENS = 4  # bytes of a character in UTF-8
_LEARNED, _CONTEXT = "green", "dim"

# E examples, N records


@dataclass(frozen=True)
class LanguageFacts:
    """What tokenisation did to a split of language records, for data.json and the banner.

    Attributes:
        num_records: Records read.
        num_examples: What they became: more where windows were cut, fewer where some were dropped.
        num_tokens, num_supervised: Of the examples. A token in two windows counts twice
            among the tokens, once among the supervised.
        num_targets: Supervised tokens that are not the first of their example: the loss's count.
        share_histogram: Examples by share of supervised tokens, ten bins of a tenth each.
        num_long: Records above seq_length.
        num_oversized: Conversations above max_function_bytes, dropped unread.
        num_dropped: Records of which no example is left, for whatever reason.
        num_unsupervised: Examples dropped because the cut left nothing supervised in them.
        policy: data.long_functions.
        warnings: Sentences for the user.
    """

    num_records: int
    num_examples: int
    num_tokens: int
    num_supervised: int
    num_targets: int
    share_histogram: list[int]
    num_long: int
    num_oversized: int
    num_dropped: int
    num_unsupervised: int
    policy: str
    warnings: list[str]


def encode_language(
    records: Sequence[Conversation | Document], tokenizer: CodeTokenizer, config: DataConfig
) -> Pieces:
    """Token ids of records, with the end token after every answer and document.

    Spans are tokenised apart, as a prompt is when the model is asked: no merge crosses the place
    where an answer begins. What the tokenizer puts before a text comes before the first alone.

    Args:
        records: A chunk that fits in memory.
        tokenizer: Encodes and ends; the files beside it hold its chat template.
        config: template, supervise, seq_length, long_functions, window_overlap. A conversation
            above max_function_bytes is dropped unread; a document of any length is cut.

    Returns:
        The examples of the records that can be written; which cannot is said in `refused`.

    Raises:
        DataError: A record in which nothing is supervised, or more than data.max_bad_rows that the
            chat template cannot write.
    """
    if config.normalize_whitespace != "none":
        raise DataError(
            f"data.normalize_whitespace={config.normalize_whitespace} is for functions; text and"
            " answers are learned unchanged: set it to none"
        )
    folder = tokenizer.path.parent
    own, calling = (own_template(folder, has_tools=has) for has in (False, True))
    read: list[Conversation | Document] = []
    examples_N: list[Sequence[list[Span] | None]] = []
    control_tokens: list[str] = []
    refused: dict[int, str] = {}
    for index, record in enumerate(records):
        try:
            with naming_template(folder):
                chosen = calling if uses_tools(record) else own
                examples = _record_examples(record, config, chosen, tokenizer.markers)
        except RecordRefused as refusal:
            refused[index] = str(refusal)
            if len(refused) > config.max_bad_rows:
                raise
            continue
        read.append(record)
        examples_N.append(examples)
        if examples[0] and not examples[0][0].plain:
            token = tokenizer.first_special(record.text)
            control_tokens += [token] if token else []
    pieces = _pieces(read, examples_N, tokenizer, config)
    return replace(pieces, refused=refused, control_tokens=control_tokens)


def encode_spans(
    spans_N: Iterable[Sequence[Span] | None], tokenizer: CodeTokenizer
) -> Iterator[Tokens]:
    """Ids of the spans of records, one after the other, with neither begin nor end tokens.

    Args:
        spans_N: Of each record, the first being the beginning of a text; None for one unread.
        tokenizer: Encodes.
    """
    flat = [(span, not n) for spans in spans_N for n, span in enumerate(spans or ())]
    texts, plain = [span.text for span, _ in flat], [span.plain for span, _ in flat]
    return tokenizer.encode(texts, [is_first for _, is_first in flat], plain)


def supervised_facts(pieces: Pieces, config: DataConfig, num_documents: int = 0) -> LanguageFacts:
    """Counts of a split.

    Args:
        pieces: All of them, possibly files in memory.
        config: seq_length and long_functions.
        num_documents: How many of the records are documents: where long ones lose text, a warning
            says so.
    """
    assert pieces.supervised is not None
    lengths, starts = pieces.lengths_E, np.append(0, np.cumsum(pieces.lengths_E))
    targets_E = targets_of(pieces.supervised, starts)
    learned_E = targets_E + pieces.supervised[starts[:-1]]
    bins = np.minimum(learned_E * _NUM_BINS // np.maximum(lengths, 1), _NUM_BINS - 1)
    num_records = len(pieces.code_lengths_N)
    num_long = int((pieces.code_lengths_N > config.seq_length).sum())
    warnings = []
    if num_documents and num_long and config.long_functions != "window":
        warnings.append(
            f"data.long_functions={config.long_functions}: {num_long} of {num_records} records are"
            f" above data.seq_length={config.seq_length} and lose text; window keeps all of it"
        )
    return LanguageFacts(
        num_records=num_records,
        num_examples=len(lengths),
        num_tokens=int(lengths.sum()),
        num_supervised=int(learned_E.sum()),
        num_targets=int(targets_E.sum()),
        share_histogram=np.bincount(bins, minlength=_NUM_BINS).tolist(),
        num_long=num_long,
        num_oversized=int((pieces.code_lengths_N < 0).sum()),
        num_dropped=num_records - len(np.unique(pieces.record_E)),
        num_unsupervised=pieces.num_unsupervised,
        policy=config.long_functions,
        warnings=warnings,
    )


def show_example(
    tokens: Tokens, supervised: Mask, tokenizer: CodeTokenizer, *, brackets: bool = False
) -> "Text":
    """An example decoded token by token: targets green, context dim, special tokens inverse.

    Control characters but line ends and tabs are written out.

    Args:
        tokens: Ids of one example.
        supervised: Which of them are targets; the first never is, for nothing predicts it.
        tokenizer: What encoded them.
        brackets: Put targets between ⟦ and ⟧, for those who see no colour.
    """
    from rich.text import Text

    decoder, shown = _decoder(str(tokenizer.path)), Text()
    special = {n for n, token in decoder.get_added_tokens_decoder().items() if token.special}
    before: list[int] = []  # some tokenizers drop the blank that begins a text
    pending: list[int] = []  # a character can be several tokens
    is_open = False
    for place, number in enumerate(tokens.tolist()):
        is_target = bool(place and supervised[place])
        style = _LEARNED if is_target else _CONTEXT
        if brackets and not pending and is_target != is_open:
            shown.append("⟦" if is_target else "⟧")
            is_open = is_target
        pending.append(number)
        head = decoder.decode(before, skip_special_tokens=False)
        text = decoder.decode([*before, *pending], skip_special_tokens=False)[len(head) :]
        is_last = place + 1 == len(tokens) or len(pending) == _MAX_CHARACTER_TOKENS
        if text.endswith("\ufffd") and not is_last:
            continue
        shown.append(escaped(text), f"reverse {style}" if number in special else style)
        before, pending = pending, []
    return shown.append("⟧") if is_open else shown


@lru_cache(maxsize=1)
def _decoder(path: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)


def _pieces(
    records: Sequence[Conversation | Document],
    examples_N: Sequence[Sequence[list[Span] | None]],
    tokenizer: CodeTokenizer,
    config: DataConfig,
) -> Pieces:
    """The pieces of records of one or several examples; a record is as long as its longest."""
    num_N = [len(examples) for examples in examples_N]
    owner_E = np.repeat(np.arange(len(records), dtype=np.int64), num_N)
    spans_E = [spans for examples in examples_N for spans in examples]
    whole_E = _whole([records[n] for n in owner_E.tolist()], spans_E, tokenizer)
    pieces = cut_records(whole_E, tokenizer, config, are_texts=False)
    lengths_N = np.full(len(records), -1, np.int32)
    np.maximum.at(lengths_N, owner_E, pieces.code_lengths_N)
    return replace(
        pieces,
        record_E=owner_E[pieces.record_E],
        code_lengths_N=lengths_N,
        num_split=sum(num > 1 for num in num_N),
    )


def _whole(
    records: Sequence[Conversation | Document],
    spans_N: Sequence[Sequence[Span] | None],
    tokenizer: CodeTokenizer,
) -> Iterator[tuple[Tokens, Mask] | None]:
    """Ids and mask of each record from those of its spans."""
    ids_S = encode_spans(spans_N, tokenizer)
    end = np.array([tokenizer.end_id], dtype=np.int32)
    for record, spans in zip(records, spans_N, strict=True):
        if spans is None:
            yield None
            continue
        parts: list[Tokens] = []
        for span in spans:
            ids = next(ids_S) if parts else tokenizer.begun(next(ids_S))
            parts.append(np.concatenate([ids, end]) if span.ends else ids)
        mask = np.repeat([span.supervised for span in spans], [len(ids) for ids in parts])
        if not mask.any():
            raise DataError(f"{record.origin}: nothing in this record is supervised")
        yield np.concatenate(parts), mask


def _record_examples(
    record: Conversation | Document,
    config: DataConfig,
    own: tuple[str | None, Mapping[str, str]],
    markers: Sequence[str],
) -> Sequence[list[Span] | None]:
    """The examples of a record in spans; one that is None where it is too long to be read."""
    if isinstance(record, Conversation):
        if len(record.text.encode()) > config.max_function_bytes:
            return [None]
        return render(record, config.template, config.supervise, *own, markers)
    blocks = list(_blocks(record.text))
    return [[Span(block, True, n == len(blocks)) for n, block in enumerate(blocks, 1)]]


def _blocks(text: str) -> Iterator[str]:
    """A text in parts, cut after a line end where there is one."""
    first = 0
    while len(text) - first > _BLOCK_CHARACTERS:
        end = text.rfind("\n", first, first + _BLOCK_CHARACTERS) + 1
        end = end if end > first else first + _BLOCK_CHARACTERS
        yield text[first:end]
        first = end
    yield text[first:]
