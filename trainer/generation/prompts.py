"""Prompts that a language model answers at every validation."""

import numpy as np

from data.config import DataConfig
from data.kinds import KINDS
from data.prepared.prepare import Prepared
from data.readers.conversations import QUESTION
from data.records import Conversation, Turn
from data.text.language import encode_spans
from data.text.own_template import naming_template, own_template
from data.text.templates import Span, render
from data.text.tokenization import ExampleSet
from data.text.tokenizer import CodeTokenizer
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError
from trainer.generation.decoding import NEW_TOKENS, Prompt

_MOST_PROMPTS = 3  # taken from the validation split where the recipe names none
_BEGINNING = 32  # tokens of a text that is learned whole


def run_prompts(config: RunConfig, prepared: Prepared) -> list[Prompt]:
    """Prompts of a recipe as the data writes questions, else those of the validation split.

    Raises:
        ConfigError: A prompt is empty, or leaves an answer no room.
        DataError: The template cannot write one.
    """
    tokenizer, limit = prepared.tokenizer, config.data.seq_length
    if config.eval.prompts:
        train = prepared.facts["splits"]["train"]
        kind, num = train["kinds"][0], train["tokens"]["num_records"]
        thinks = 2 * train.get("num_thinking", 0) > num  # absent in a run of an older version
        asked = [
            asked_ids(text, kind, tokenizer, config.data, thinks=thinks)
            for text in config.eval.prompts
        ]
        for text, ids in zip(config.eval.prompts, asked, strict=True):
            if not 0 < len(ids) < limit:
                raise ConfigError(
                    f"eval.prompts: {text[:60]!r} is {len(ids)} tokens; a prompt needs at least one"
                    f" and fewer than data.seq_length, {limit}"
                )
        return [Prompt(ids, tokenizer.decode(ids)) for ids in asked]
    return first_prompts(prepared.splits["valid"].examples, tokenizer)


def asked_ids(
    text: str, kind: str, tokenizer: CodeTokenizer, config: DataConfig, *, thinks: bool = False
) -> list[int]:
    """Tokens of a question up to where its answer begins; of the beginning of a text.

    Args:
        kind: Of the records that are learned; decides what template "auto" is.
        tokenizer: Encodes; the files beside it hold its chat template.
        thinks: Most answers that are learned do; otherwise a thought of the template is closed.
    """
    parts = [Span(text, supervised=False)]
    if KINDS[kind].holds != "text":
        asked = [QUESTION, text] if KINDS[kind].holds == "function" else [text]
        answer = Turn("assistant", "answer", reasoning="thought" if thinks else "")
        turns = (*(Turn("user", said) for said in asked), answer)
        record = Conversation("eval.prompts", turns, "eval.prompts", "eval.prompts", kind)
        own = own_template(tokenizer.path.parent)
        with naming_template(tokenizer.path.parent):
            spans, *_ = render(record, config.template, "answers", *own, tokenizer.markers)
        first = next(n for n, span in enumerate(spans) if span.supervised)
        parts = spans[:first]
    ids_S = encode_spans([parts], tokenizer)
    first_ids = tokenizer.begun(next(ids_S, np.zeros(0, np.int32)))  # nothing may be asked
    return [token for ids in [first_ids, *ids_S] for token in ids.tolist()]


def first_prompts(examples: ExampleSet, tokenizer: CodeTokenizer) -> list[Prompt]:
    """The first examples up to their first target; texts that are all target up to a few tokens."""
    assert examples.supervised is not None
    prompts = []
    for first, end in zip(examples.starts[:-1], examples.starts[1:], strict=True):
        ids = examples.tokens[first:end].tolist()
        before = int(np.argmax(examples.supervised[first:end])) or min(_BEGINNING, len(ids) // 2)
        if before:
            answer = examples.supervised[first + before : end]
            until = int(np.argmin(answer)) or len(answer)  # where the next question begins
            reference = ids[before : before + min(until, NEW_TOKENS)]
            if reference[-1] == tokenizer.end_id:
                del reference[-1]
            texts = tokenizer.decode(ids[:before]), tokenizer.decode(reference)
            prompts.append(Prompt(ids[:before], *texts))
        if len(prompts) == _MOST_PROMPTS:
            break
    return prompts
