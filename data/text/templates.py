"""Records -> text with its supervised spans: what is learned is known by place, never by token."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from data.errors import DataError
from data.kinds import KINDS
from data.records import Conversation, Document
from data.text.chat import Span, chat_examples, chat_template

__all__ = ["CHAT_TEMPLATE", "TEMPLATES", "Span", "Template", "chosen_template", "render"]

CHAT_TEMPLATE = "chat_template"


@dataclass(frozen=True)
class Template:
    """How the turns of a conversation are written.

    Attributes:
        question: A user turn, {instruction}, up to where the answer begins.
        question_input: The same with an {input}.
        answer: An {answer}. A blank before it belongs to it: byte-level tokenizers join a blank to
            the word after it, so a prompt that ended with one would end in a token of its own.
        between: Between an answer's end token and the next question.
        opening: Before the first turn; a system turn replaces it.
        opening_input: The same where the first instruction has an input.
        is_stripped: Blanks at the end of a question are left out.
    """

    question: str
    question_input: str
    answer: str
    between: str
    opening: str = ""
    opening_input: str = ""
    is_stripped: bool = False


TEMPLATES: dict[str, Template] = {
    "alpaca": Template(  # tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT
        opening="Below is an instruction that describes a task. Write a response that"
        " appropriately completes the request.\n\n",
        opening_input="Below is an instruction that describes a task, paired with an input that"
        " provides further context. Write a response that appropriately completes the request.\n\n",
        question="### Instruction:\n{instruction}\n\n### Response:",
        question_input="### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
        answer="{answer}",
        between="\n\n",
    ),
    "question_answer": Template(  # OctoPack (Muennighoff 2023), ASTRAIOS (Zhuo 2024)
        question="Question: {instruction}\n\nAnswer:",
        question_input="Question: {instruction}\n{input}\n\nAnswer:",
        answer=" {answer}",
        between="\n\n",
    ),
    # as tutorials tune Bloom and Llama on Alpaca; they encode the answer apart from the blank
    "human_assistant": Template(
        question="Human: {instruction}\n\nAssistant: ",
        question_input="Human: {instruction}\n{input}\n\nAssistant: ",
        answer="{answer}",
        between="\n\n",
        is_stripped=True,
    ),
    "plain": Template(
        question="{instruction}",
        question_input="{instruction}\n{input}",
        answer="{answer}",
        between="",
    ),
}


def chosen_template(template: str, kind: str, has_own: bool) -> str:
    """The template of a kind of records.

    Args:
        template: Name, or "auto".
        kind: Of the record.
        has_own: The tokenizer has a chat template.

    Raises:
        DataError: No such template, or the tokenizer has none of its own.
    """
    if template == "auto":
        own = KINDS[kind].prefers_own_template and has_own
        return CHAT_TEMPLATE if own else KINDS[kind].template
    if template == CHAT_TEMPLATE and not has_own:
        raise DataError(
            "data.template=chat_template, but the tokenizer has none in tokenizer_config.json or"
            f" chat_template.jinja; use one of {list(TEMPLATES)}"
        )
    if template not in TEMPLATES and template != CHAT_TEMPLATE:
        raise DataError(
            f"data.template: there is no {template!r}; use auto, {CHAT_TEMPLATE} or one of"
            f" {list(TEMPLATES)}"
        )
    return template


def render(
    record: Conversation | Document,
    template: str,
    supervise: str,
    own: str | None = None,
    special_tokens: Mapping[str, str] | None = None,
    markers: Collection[str] = (),
) -> list[list[Span]]:
    """The examples of a record in spans, each supervised whole or not at all.

    Args:
        record: A document is one span that ends.
        template: A name in TEMPLATES, "chat_template" or "auto".
        supervise: "answers"; "last_answer", the others being context; "all".
        own: The tokenizer's chat template, in jinja.
        special_tokens: What it may name, such as {"bos_token": "<s>"}.
        markers: Tokens of the tokenizer that can end a turn of its chat template.

    Raises:
        DataError: No such template.
        RecordRefused: A chat template that fails, or that does not show the spans.
    """
    if isinstance(record, Document):
        return [[Span(record.text, supervised=True, ends=True)]]
    name = chosen_template(template, record.kind, own is not None)
    if name == CHAT_TEMPLATE:
        assert own is not None
        known = chat_template(own, special_tokens or {}, markers)
        examples = chat_examples(record, known, supervise)
    else:
        examples = [_supervised(list(_spans(record, TEMPLATES[name])), supervise)]
    return [[span for span in spans if span.text or span.ends] for spans in examples]


def _supervised(spans: Sequence[Span], supervise: str) -> list[Span]:
    """Spans whose answers are all supervised -> the ones that data.supervise selects."""
    if supervise == "all":
        return [replace(span, supervised=True) for span in spans]
    if supervise == "answers":
        return list(spans)
    last = max((n for n, span in enumerate(spans) if span.supervised), default=0)
    return [replace(span, supervised=span.supervised and n == last) for n, span in enumerate(spans)]


def _spans(record: Conversation, template: Template) -> Iterator[Span]:
    """Prompts and answers; tools open a text, their results are questions, calls are JSON."""
    users: list[str] = []
    prompt, is_first = f"{record.tools}\n\n" if record.tools else "", True
    for turn in record.turns:
        if turn.role in ("system", "developer"):
            prompt += f"{turn.content}\n\n"
        elif turn.role != "assistant":
            users.append(turn.content)
        if turn.role != "assistant":
            continue
        if is_first and not prompt:
            prompt = template.opening_input if len(users) > 1 else template.opening
        prompt += _question(users, template)
        answer = template.answer.format(answer=turn.text)
        yield Span(prompt, supervised=False, plain=True)
        yield Span(answer, supervised=turn.is_learned, ends=True, plain=True)
        users, prompt, is_first = [], template.between, False


def _question(users: Sequence[str], template: Template) -> str:
    if not users:
        return ""
    if template.is_stripped:
        users = [*users[:-1], users[-1].rstrip()]
    if len(users) == 1:
        return template.question.format(instruction=users[0])
    return template.question_input.format(instruction=users[0], input="\n".join(users[1:]))
