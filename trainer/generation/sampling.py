"""Many answers to many prompts, shared among ranks, the same for any number of them.

What is drawn for an answer depends on the seed and its place alone. Logits do not: their last bits
change with the texts that share a pass, and so does a token whose chance lies on the border of what
is drawn or that is as likely as another one. In float32 that has not been seen (a border is hit
once in some 10^6 tokens); in bfloat16 texts differ now and then between batch sizes and devices,
with equal chances.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from data.text import terminal
from data.text.tokenizer import CodeTokenizer
from trainer.generation.decoding import Ids, Limits, Prompt, Writer
from trainer.generation.vllm_writer import VllmWriter
from trainer.processes.distributed import Ranks, gather

_BEFORE = 4  # tokens before an answer that are decoded with it: a tokenizer may join them


@dataclass(frozen=True)
class Asked:
    """A text that is to be written.

    Attributes:
        text: Comes before it. Of more tokens than it may have, its last ones are read, and one is
            written.
        place: What is drawn depends on this: the numbers of the item and of its sample.
        is_over: Whether the rest of an answer changes nothing.
        stops: Texts any of which makes an answer over; not all that do.
    """

    text: str
    place: tuple[int, ...]
    is_over: Callable[[str], bool] = lambda _: False
    stops: Sequence[str] = ()


def generate(
    asked: Sequence[Asked],
    writer: Writer | VllmWriter,
    tokenizer: CodeTokenizer,
    limits: Limits,
    ranks: Ranks,
) -> Iterator[dict[int, str]]:
    """Answers by their number among what is asked, without the end token; all ranks call this.

    Prompts of similar lengths share passes of `limits.together` texts, padded on the left, or as
    vLLM has them share. Every rank yields the answers of all ranks, once each has written its own.

    Args:
        writer: Of this rank alone.
        limits: seq_length is that of a text with its answer.
    """
    texts = list(dict.fromkeys(one.text for one in asked))
    ids_of = dict(zip(texts, tokenizer.encode(texts), strict=True))
    prompts = []
    for one in asked:
        ids = tokenizer.begun(ids_of[one.text]).tolist()[-limits.seq_length :]
        most = min(max(1, limits.seq_length - len(ids)), limits.new_tokens)
        is_over = _ids_over(ids[-_BEFORE:], tokenizer, one.is_over)
        ends = frozenset({tokenizer.end_id})
        prompt = Prompt(ids, one.text, ends, "", most, one.place, is_over, one.stops)
        prompts.append(prompt)
    writer.prove([prompt.ids for prompt in prompts])
    if ranks.is_main and writer.line:
        terminal.say(writer.line)
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n].ids))
    assert limits.together is not None
    together = max(limits.together, writer.at_once)
    room = Limits(
        limits.seq_length + 1,  # the last token is written and never read
        limits.seq_length, limits.temperature, limits.seed, limits.top_p, limits.together,
    )  # fmt: skip
    for first in range(0, len(order), together * ranks.world_size):
        own = order[first : first + together * ranks.world_size][ranks.rank :: ranks.world_size]
        answers = writer.write([prompts[n] for n in own], room)
        said = {
            str(n): _said(prompts[n].ids[-_BEFORE:], answer, tokenizer)
            for n, answer in zip(own, answers, strict=True)
        }
        parts = [said] if ranks.world_size == 1 else gather(said, ranks)
        yield {int(n): text for part in parts for n, text in part.items()}


def _said(before: Ids, answer: Ids, tokenizer: CodeTokenizer) -> str:
    """The text of an answer where it stands, which is not that of its tokens alone."""
    if answer and answer[-1] == tokenizer.end_id:
        answer = answer[:-1]
    return tokenizer.decode([*before, *answer])[len(tokenizer.decode(before)) :]


def _ids_over(
    before: Ids, tokenizer: CodeTokenizer, is_over: Callable[[str], bool]
) -> Callable[[Ids], bool]:
    return lambda answer: is_over(_said(before, answer, tokenizer))
