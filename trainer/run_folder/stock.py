"""Makes an exported folder what stock tools need to give the same scores.

Our code puts the begin and end tokens around a function itself; stock's tokenizer has to. Stock's
classifiers read the last token that is not padding, so a pad token must not be the end token. A
language model stops where it has learned to: at the end token, or at its chat template's own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import TokenizerError, file_text, json_object
from data.kinds import KINDS
from data.records import Conversation, Turn
from data.text.own_template import own_template
from data.text.templates import CHAT_TEMPLATE, TEMPLATES, Template, chosen_template, render
from data.text.tokenizer import MOST_BYTES, CodeTokenizer, special_tokens, tokenizer_of
from trainer.config.sections import RunConfig
from trainer.errors import ModelError
from trainer.run_folder.folder import write_json, write_whole

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_GENERATION, _CHAT = "generation_config.json", "chat_template.jinja"
_FILE, _SETTINGS, _MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_AGAIN = "copy the model again"
# What Python's str.split() takes for blanks, for the regular expressions of tokenizers.
_SPACE = "[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
_NEW_PAD = "<|focaltune_pad|>"
_BLANKS = ("\u0120", "\u2581")  # how tokens write a blank; no source code holds these characters


@dataclass(frozen=True)
class Pad:
    """A token that fills rows, and its id."""

    token: str
    id: int


def settle_tokenizer(
    folder: Path, tokenizer: CodeTokenizer, config: RunConfig, num_embeddings: int
) -> Pad:
    """Let the tokenizer of a folder put around, cut and pad a function as training did.

    Args:
        folder: Holds the tokenizer's files, which are changed.
        tokenizer: Of the model.
        config: data.seq_length, data.long_functions and data.normalize_whitespace.
        num_embeddings: Rows of the model's table of tokens.

    Returns:
        The pad token, which is the tokenizer's from now on.

    Raises:
        ModelError: No token can be one.
    """
    path = folder / _FILE
    text = file_text(path, TokenizerError, _AGAIN, MOST_BYTES)
    stock, values = tokenizer_of(text), json.loads(text)
    pad = _pad(stock, values, tokenizer.end_id, special_tokens(folder), num_embeddings)
    settings = (
        json_object(folder / _SETTINGS, TokenizerError, _AGAIN)
        if (folder / _SETTINGS).is_file()
        else {}
    )
    if not _is_around(stock, tokenizer):
        values["post_processor"] = _around(stock, values.get("post_processor"), tokenizer)
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        for key in ("add_bos_token", "add_eos_token"):  # stock would write the post-processor anew
            settings.pop(key, None)
    if config.data.normalize_whitespace == "collapse":
        values["normalizer"] = _collapsing(values.get("normalizer"))
    if stock.token_to_id(pad.token) is None:
        values["added_tokens"].append(_added(pad))
    values |= {"truncation": None, "padding": None}
    write_whole(path, json.dumps(values, ensure_ascii=False))
    cuts_left = config.data.long_functions == "truncate_left"
    settings |= {
        "pad_token": pad.token,
        "padding_side": "right",
        "truncation_side": "left" if cuts_left else "right",
        "model_max_length": config.data.seq_length,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / _SETTINGS, settings)
    if (folder / _MAP).is_file():
        named = json_object(folder / _MAP, TokenizerError, _AGAIN)
        write_json(folder / _MAP, named | {"pad_token": pad.token})
    return pad


def _is_around(stock: "Tokenizer", tokenizer: CodeTokenizer) -> bool:
    """Whether the tokenizer puts the same tokens around a function by itself."""
    inside = stock.encode("a", add_special_tokens=False).ids
    return bool(stock.encode("a").ids == [*tokenizer.begin_ids, *inside, tokenizer.end_id])


def _around(stock: "Tokenizer", before: Any, tokenizer: CodeTokenizer) -> dict[str, Any]:
    """The post-processor that puts begin and end tokens around one text, or two."""

    def special(ids: list[int]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": stock.id_to_token(i), "type_id": 0}} for i in ids]

    begin, between, end = tokenizer.begin_ids, tokenizer.between_ids, [tokenizer.end_id]
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    names = {stock.id_to_token(i): i for i in (*begin, *between, *end)}
    template = {
        "type": "TemplateProcessing",
        "single": [*special(begin), first, *special(end)],
        "pair": [*special(begin), first, *special(between), second, *special(end)],
        "special_tokens": {
            name: {"id": name, "ids": [i], "tokens": [name]} for name, i in names.items()
        },
    }
    parts = before["processors"] if (before or {}).get("type") == "Sequence" else [before]
    kept = [part for part in parts if part and part["type"] == "ByteLevel"]  # it trims offsets
    return {"type": "Sequence", "processors": [*kept, template]} if kept else template


def _collapsing(before: Any) -> dict[str, Any]:
    """The normalizer with `" ".join(code.split())` before it."""
    own = [
        {"type": "Replace", "pattern": {"Regex": _SPACE}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]
    parts = before["normalizers"] if (before or {}).get("type") == "Sequence" else [before]
    return {"type": "Sequence", "normalizers": [*own, *filter(None, parts)]}


def _pad(
    stock: "Tokenizer",
    values: Mapping[str, Any],
    end_id: int,
    named: Mapping[str, str],
    num_embeddings: int,
) -> Pad:
    """A token that can fill rows: any but the end token, which stock would not find then.

    In this order: the tokenizer's own; another special token, one called pad first; a new one where
    the model's table has a row for it; a word whose letters no source code writes.
    """
    special = [t["content"] for t in values["added_tokens"] if t["special"]]
    special.sort(key=lambda token: "pad" not in token.casefold())
    for token in (named.get("pad_token"), *special):
        number = None if token is None else stock.token_to_id(token)
        if token is not None and number not in (None, end_id) and number < num_embeddings:
            return Pad(token, number)
    vocabulary = stock.get_vocab(with_added_tokens=True)
    free = max(vocabulary.values()) + 1
    if free < num_embeddings:
        return Pad(_NEW_PAD, free)
    words = [token for token in vocabulary if token.startswith(_BLANKS) and token[1:].isalpha()]
    if not words:
        raise ModelError(
            "no token of the tokenizer can fill rows: all but the end token are text, and the"
            " model's table has no row for another; stock tools score one function at a time"
        )
    longest = max(words, key=lambda token: (len(token), token))
    return Pad(longest, vocabulary[longest])


def _added(pad: Pad) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": pad.id, "content": pad.token, **flags, "special": True}


def settle_generation(
    folder: Path, tokenizer: CodeTokenizer, config: RunConfig, kinds: Sequence[str]
) -> None:
    """Let the folder of a language model say where answers end and how questions are written.

    Args:
        folder: Holds the tokenizer's files; receives generation_config.json, and the chat template
            of a named data.template where the tokenizer has none.
        tokenizer: Of the model.
        config: data.template.
        kinds: Of the records that were learned, the first decides.
    """
    path = folder / _GENERATION
    values = json_object(path, ModelError, _AGAIN) if path.is_file() else {}
    before = values.get("eos_token_id") or []
    ends = {*(before if isinstance(before, list) else [before]), tokenizer.end_id}
    if KINDS[kinds[0]].holds != "text":
        own, named = own_template(folder)
        name = chosen_template(config.data.template, kinds[0], own is not None)
        ends |= _turn_ends(tokenizer, config, kinds[0], own, named)
        if own is None and name != CHAT_TEMPLATE:
            write_whole(folder / _CHAT, _chat_template(TEMPLATES[name], tokenizer))
    values["eos_token_id"] = min(ends) if len(ends) == 1 else sorted(ends)
    if values.get("pad_token_id") is None:
        values["pad_token_id"] = tokenizer.end_id  # masked where texts are generated
    write_json(path, values)


def _turn_ends(
    tokenizer: CodeTokenizer,
    config: RunConfig,
    kind: str,
    own: str | None,
    named: Mapping[str, str],
) -> set[int]:
    """The token behind an answer, where the chat template writes one."""
    turns = (Turn("user", "a"), Turn("assistant", "b"))
    record = Conversation("export", turns, "export", "export", kind)
    spans, *_ = render(record, config.data.template, "answers", own, named, tokenizer.markers)
    answer = [span for span in spans if span.supervised][-1]
    if answer.ends:
        return set()
    *_, last = next(tokenizer.encode([answer.text], [False])).tolist()
    return {last} if tokenizer.decode([last]) in tokenizer.markers else set()


def _chat_template(template: Template, tokenizer: CodeTokenizer) -> str:
    """A template of ours in jinja; a user turn alone is a question."""

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    before, after = template.question.split("{instruction}")
    asked = "message.content.rstrip()" if template.is_stripped else "message.content"
    lead = template.answer.removesuffix("{answer}")
    return (
        f"{{{{- {quoted(tokenizer.begin_token)} }}}}"
        f"{{%- set at = namespace(opening={quoted(template.opening)}) %}}"
        "{%- for message in messages %}"
        "{%- if message.role in ['system', 'developer'] %}"
        "{{- message.content + '\n\n' }}{%- set at.opening = '' %}"
        "{%- elif message.role == 'assistant' %}"
        f"{{{{- {quoted(lead)} + message.content + {quoted(tokenizer.end_token)} }}}}"
        f"{{%- set at.opening = {quoted(template.between)} %}}"
        "{%- else %}"
        f"{{{{- at.opening + {quoted(before)} + {asked} + {quoted(after)} }}}}"
        "{%- set at.opening = '' %}"
        "{%- endif %}{%- endfor %}"
    )
