"""Prompts that a language model answers: those of a recipe, of a chat, or of the data."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.config import DataConfig
from data.kinds import KINDS
from data.prepared.prepare import Prepared
from data.readers.conversations import QUESTION, ordered
from data.readers.messages import turns_of
from data.readers.reading import ReadFacts, Reading, RowFault
from data.records import Conversation, Turn
from data.text.language import encode_spans
from data.text.own_template import naming_template, own_template, uses_tools
from data.text.templates import Span, render
from data.text.tokenization import ExampleSet
from data.text.tokenizer import CodeTokenizer
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError
from trainer.generation.decoding import Prompt

_MOST_PROMPTS = 3  # taken from the validation split where the recipe names none
_BEGINNING = 32  # tokens of a text that is learned whole
_ANSWER = "answer"  # stands in for the one to be written


def run_prompts(config: RunConfig, prepared: Prepared) -> list[Prompt]:
    """Prompts of a recipe as the data writes questions, else those of the validation split.

    Raises:
        ConfigError: A prompt is empty, is not a conversation, or leaves an answer no room.
        DataError: The template cannot write one.
    """
    tokenizer, limit = prepared.tokenizer, config.data.seq_length
    if not config.eval.prompts:
        valid = prepared.splits["valid"].examples
        return first_prompts(valid, tokenizer, config.eval.max_new_tokens)
    kind, thinks = asked_as(prepared)
    prompts = []
    for number, given in enumerate(config.eval.prompts, 1):
        said = given if isinstance(given, str) else _turns(given, number, kind, config.data)
        prompt = asked(said, kind, tokenizer, config.data, thinks=thinks)
        if not 0 < len(prompt.ids) < limit:
            shown = repr(given[:60]) if isinstance(given, str) else f"conversation {number}"
            raise ConfigError(
                f"eval.prompts: {shown} is {len(prompt.ids)} tokens; a prompt needs at least one"
                f" and fewer than data.seq_length, {limit}"
            )
        prompts.append(prompt)
    return prompts


def asked_as(prepared: Prepared) -> tuple[str, bool]:
    """Kind of the records that were learned, and whether most of their answers think."""
    train = prepared.facts["splits"]["train"]
    # absent in a run of an older version
    return train["kinds"][0], 2 * train.get("num_thinking", 0) > train["tokens"]["num_records"]


def asked(
    said: str | Sequence[Turn],
    kind: str,
    tokenizer: CodeTokenizer,
    config: DataConfig,
    *,
    thinks: bool = False,
) -> Prompt:
    """A question, or a conversation, up to where its answer begins; or the beginning of a text.

    Args:
        said: The user's words, or turns of which the last is not an answer.
        kind: Of the records that are learned; decides what template "auto" is.
        tokenizer: Encodes; the files beside it hold its chat template.
        config: Names the template.
        thinks: Most answers that are learned do; otherwise a thought of the template is closed.

    Raises:
        DataError: The template cannot write it.
    """
    parts, ends = [Span(str(said), supervised=False)], {tokenizer.end_id}
    if KINDS[kind].holds != "text":
        if isinstance(said, str):
            texts = [QUESTION, said] if KINDS[kind].holds == "function" else [said]
            said = [Turn("user", text) for text in texts]
        answer = Turn("assistant", _ANSWER, reasoning="thought" if thinks else "")
        record = Conversation("prompt", (*said, answer), "this prompt", "prompt", kind)
        folder = tokenizer.path.parent
        own = own_template(folder, has_tools=uses_tools(record))
        with naming_template(folder):
            spans, *_ = render(record, config.template, "last_answer", *own, tokenizer.markers)
        first = next(n for n, span in enumerate(spans) if span.supervised)
        parts = spans[:first]
        close = spans[first].text.rpartition(_ANSWER)[2]
        ends |= _end(next(tokenizer.encode([close], [False])).tolist(), tokenizer)
    ids: list[int] = []
    for span, tokens in zip(parts, encode_spans([parts], tokenizer), strict=True):
        ids += (tokens if ids else tokenizer.begun(tokens)).tolist()
        ids += [tokenizer.end_id] if span.ends else []
    ids = ids or [*tokenizer.begin_ids]  # nothing may be asked
    return Prompt(ids, tokenizer.decode(ids), ends)


def _end(close: Sequence[int], tokenizer: CodeTokenizer) -> set[int]:
    """The first marker of what follows an answer, if there is one."""
    return set([n for n in close if n in tokenizer.marker_ids][:1])


def _turns(said: Any, number: int, kind: str, config: DataConfig) -> list[Turn]:
    """The turns of a conversation that ends with a question."""
    where = f"eval.prompts[{number}]"
    if KINDS[kind].holds in ("text", "function"):
        raise ConfigError(f"{where} is a conversation, the data are not; give the text alone")
    reading = Reading("eval.prompts", config, ReadFacts())
    try:
        turns, _ = turns_of(said, where, reading, where)
        if turns and turns[-1].role == "assistant":
            raise RowFault("its last message is an answer; end with the question to answer")
        return ordered([*turns, Turn("assistant", _ANSWER)], where, reading)[:-1]
    except RowFault as fault:
        raise ConfigError(f"{where}: {fault}") from fault


def first_prompts(
    examples: ExampleSet, tokenizer: CodeTokenizer, max_new_tokens: int
) -> list[Prompt]:
    """The first examples up to their first target; texts that are all target up to a few tokens."""
    assert examples.supervised is not None
    prompts = []
    for first, end in zip(examples.starts[:-1], examples.starts[1:], strict=True):
        ids = examples.tokens[first:end].tolist()
        before = int(np.argmax(examples.supervised[first:end])) or min(_BEGINNING, len(ids) // 2)
        if before:
            answer = examples.supervised[first + before : end]
            until = int(np.argmin(answer)) or len(answer)  # where the next question begins
            whole = ids[before : before + until]
            ends = {tokenizer.end_id} | _end(whole[-1:], tokenizer)
            reference = whole[:max_new_tokens]
            if reference[-1] in ends:
                del reference[-1]
            texts = tokenizer.decode(ids[:before]), tokenizer.decode(reference)
            prompts.append(Prompt(ids[:before], texts[0], ends, texts[1]))
        if len(prompts) == _MOST_PROMPTS:
            break
    return prompts
