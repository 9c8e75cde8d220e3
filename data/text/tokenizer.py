"""A tokenizer.json as the model's pre-training used it: what begins a text, what ends it."""

import json
import math
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data.errors import TokenizerError, file_text, json_object, parsing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_BYTES = 512 << 20  # of tokenizer.json; that of 260,000 tokens has 33 MB
_BATCH = 1024  # texts per call of the tokenizer
_MOST_GROWTH = 1000  # times that rules make a text longer; those of real tokenizers below 10
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
_END_TOKENS = ("<|endoftext|>", "</s>", "<|im_end|>", "<|end_of_text|>")  # where no file names one
# What puts a blank before a text, by type, and how it is turned off.
_BLANK_BEFORE: dict[str, dict[str, Any]] = {
    "Prepend": {"prepend": ""},
    "Metaspace": {"prepend_scheme": "never", "add_prefix_space": False},
    "ByteLevel": {"add_prefix_space": False},
}


class CodeTokenizer:
    """A tokenizer.json, what it puts before a text by itself, and the token that ends one.

    Llama's and Mistral's put a token before a text (<s>) and a blank before its first word. Both
    belong to the beginning of a text alone: a span inside one gets neither.

    Args:
        folder: Holds tokenizer.json, and usually tokenizer_config.json.
        end_token: Overrides what the tokenizer puts behind a text ([SEP]), or else its eos_token.

    Attributes:
        end_token, end_id: What ends a text.
        begin_token, begin_ids: Put before every text; empty for most code models.
        between_ids: Put between two texts that are read as one: [SEP]; else the end token.
        markers, marker_ids: Added tokens that are not blank: one of them ends a turn of a chat
            template.
        vocab_size: Above every id.

    Raises:
        TokenizerError: No tokenizer.json, or no end token.
    """

    def __init__(self, folder: Path, end_token: str | None = None) -> None:
        self.path = folder / "tokenizer.json"
        if not self.path.is_file():
            raise TokenizerError(
                f"{self.path} does not exist: a fast tokenizer is needed; save one with"
                " AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER), or set data.tokenizer"
            )
        with self._sound():
            self._take(folder, end_token)

    def _sound(self) -> AbstractContextManager[None]:
        """Around what the tokenizer's own code does: it takes files that it then cannot use."""
        return parsing(f"{self.path}: not a tokenizer", TokenizerError, "save it again")

    def _take(self, folder: Path, end_token: str | None) -> None:
        self._tokenizer, self._inside = _read(self.path)
        self.begin_ids, closing = self._around()
        self.end_token = end_token or closing or special_tokens(folder).get("eos_token", "")
        self.end_token = self.end_token or self._known_end_token()
        end_id = self._tokenizer.token_to_id(self.end_token)
        if end_id is None:
            raise TokenizerError(
                f"{self.path}: the end token {self.end_token!r} is not in the vocabulary"
            )
        self.end_id: int = end_id
        self.between_ids = self._between() or [end_id]
        self.begin_token = self.decode(self.begin_ids)
        added = self._tokenizer.get_added_tokens_decoder()
        named = {n: token.content for n, token in added.items() if token.content.strip()}
        self.markers, self.marker_ids = list(named.values()), frozenset(named)
        special = (re.escape(token.content) for token in added.values() if token.special)
        self._special = re.compile("|".join(sorted(special, reverse=True)) or "(?!)")
        # Not the number of tokens: ids can have gaps.
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def num_added(self) -> int:
        """Tokens around every text."""
        return len(self.begin_ids) + 1

    def encode(
        self,
        texts: Sequence[str],
        begins: Sequence[bool] | None = None,
        plain: Sequence[bool] | None = None,
    ) -> Iterator[npt.NDArray[np.int32]]:
        """Token ids of each text, with neither begin nor end tokens.

        Args:
            texts: Whole texts, or spans of them.
            begins: Which of them begin a text; None for all. One that writes the begin token does.
            plain: In which of them what reads like a special token is text; None for none.
        """
        for first in range(0, len(texts), _BATCH):
            chunk = list(texts[first : first + _BATCH])
            if begins is None and plain is None:
                yield from self._ids(chunk)
                continue
            places: dict[tuple[bool, bool], list[int]] = {}
            for n, text in enumerate(chunk):
                is_plain = plain is not None and plain[first + n]
                is_begin = begins is None or begins[first + n]
                is_begin |= not is_plain and self._writes_begin(text)
                places.setdefault((is_begin, is_plain), []).append(n)
            ids_N: dict[int, npt.NDArray[np.int32]] = {}
            for (is_begin, is_plain), group in places.items():
                ids = self._ids([chunk[n] for n in group], is_begin, is_plain)
                ids_N.update(zip(group, ids, strict=True))
            yield from (ids_N[n] for n in range(len(chunk)))

    def _ids(
        self, texts: list[str], is_begin: bool = True, is_plain: bool = False
    ) -> list[npt.NDArray[np.int32]]:
        tokenizer = self._tokenizer if is_begin else self._inside
        flat, ends = array("i"), [0]  # numpy takes twice as long for a list
        with self._sound():
            tokenizer.encode_special_tokens = is_plain
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                flat.fromlist(encoding.ids)
                ends.append(len(flat))
        ids = np.frombuffer(flat, np.int32)
        return [ids[first:end] for first, end in pairwise(ends)]

    def first_special(self, text: str) -> str | None:
        """The first special token that is written in a text."""
        found = self._special.search(text)
        return found[0] if found else None

    def begun(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The ids of a text's beginning with the begin tokens, once: templates write them, too."""
        if ids[: len(self.begin_ids)].tolist() == self.begin_ids:
            return ids
        return np.concatenate([np.array(self.begin_ids, dtype=np.int32), ids])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _around(self) -> tuple[list[int], str]:
        """Ids that the tokenizer puts before a text by itself, and the one token behind it."""
        probe = self._tokenizer.encode("a")
        are_text = [n for n, special in enumerate(probe.special_tokens_mask) if not special]
        if not are_text:
            return [], ""
        behind = probe.tokens[are_text[-1] + 1 :]
        return probe.ids[: are_text[0]], behind[0] if len(behind) == 1 else ""

    def _between(self) -> list[int]:
        """Ids that the tokenizer puts between the two texts of a pair by itself."""
        probe = self._tokenizer.encode("a", "a")
        texts = probe.sequence_ids
        if 0 not in texts or 1 not in texts:
            return []
        first = len(texts) - texts[::-1].index(0)
        ids: list[int] = probe.ids[first : texts.index(1)]
        return ids

    def _writes_begin(self, text: str) -> bool:
        return bool(self.begin_token) and text.startswith(self.begin_token)

    def _known_end_token(self) -> str:
        for token in _END_TOKENS:
            if self._tokenizer.token_to_id(token) is not None:
                return token
        raise TokenizerError(f"{self.path}: no end token found; name one with data.end_token")


def _read(path: Path) -> "tuple[Tokenizer, Tokenizer]":
    """The tokenizer for beginnings of texts and the one for spans inside, often the same."""
    text = file_text(path, TokenizerError, "save the tokenizer again", MOST_BYTES)
    whole = inside = tokenizer_of(text)
    if _puts_blank_before(whole):
        values = json.loads(text)
        for part in ("normalizer", "pre_tokenizer"):
            values[part] = _without_blank(values[part])
        inside = tokenizer_of(json.dumps(values))
    return whole, inside


def tokenizer_of(text: str) -> "Tokenizer":
    """A tokenizer without truncation, padding, and rules that multiply a text.

    Where memory is short the library ends the process, so it is not given a text before.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        part = getattr(tokenizer, name)
        growth = _growth(json.loads(part.__getstate__())) if part is not None else 1
        if growth > _MOST_GROWTH:
            times = min(growth, 10**9)
            raise ValueError(f"its {name} can make a text {times:,} times as long, or more")
    return tokenizer


def _growth(part: Any) -> int:
    """At most how many times as long the rules of a part make a text, by what they insert."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    inserted = part.get("content", part.get("prepend")) if isinstance(part, dict) else None
    own = len(inserted) if isinstance(inserted, str) else 1
    return math.prod((max(1, own), *map(_growth, inner)))


def _puts_blank_before(tokenizer: "Tokenizer") -> bool:
    """True where a word is other tokens at the beginning of a text than behind a line end."""
    texts = ("\n", "a", "\na")
    line, word, both = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    return bool(both != line + word)


def _without_blank(part: Any) -> Any:
    """A normalizer or pre-tokenizer, as JSON, that leaves the beginning of a text as it is."""
    if isinstance(part, list):
        return [_without_blank(each) for each in part]
    if not isinstance(part, dict):
        return part
    inner = {name: _without_blank(value) for name, value in part.items()}
    return inner | _BLANK_BEFORE.get(str(part.get("type")), {})


def companion(path: Path) -> dict[str, Any]:
    """What a file beside a tokenizer holds; nothing where there is none.

    Raises:
        TokenizerError: It is not a JSON object.
    """
    return json_object(path, TokenizerError, "fetch it again") if path.is_file() else {}


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that the files beside a tokenizer name, such as {"eos_token": "</s>"}.

    Raises:
        TokenizerError: A file is not a JSON object, or names something that is not a token.
    """
    named: dict[str, str] = {}
    for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        values = companion(path)
        for name in _NAMED:
            token = values.get(name)
            text = token.get("content") if isinstance(token, dict) else token
            if token is not None and not isinstance(text, str):
                raise TokenizerError(
                    f"{path}: {name} must be text or an object with content, found"
                    f" {str(token)[:40]!r}; save the tokenizer again"
                )
            if text is not None:
                named.setdefault(name, text)
    return named
