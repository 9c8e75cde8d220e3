"""A conversation with a language model in a terminal, or a question a line from a pipe."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from data.config import DataConfig
from data.errors import DataError
from data.kinds import KINDS
from data.records import Turn
from data.text.escaping import escaped
from data.text.tokenizer import CodeTokenizer
from trainer.errors import INTERRUPTED
from trainer.generation.decoding import Limits, Writer
from trainer.generation.prompts import asked
from trainer.generation.vllm_writer import VllmWriter

EXIT, NEW, BLOCK = "/exit", "/new", '"""'
HELP = (
    f"{EXIT} or Ctrl-D leaves, {NEW} forgets what was said, Ctrl-C stops an answer, {BLOCK} begins"
    " and ends a question of several lines"
)


@dataclass
class Chat:
    """A model that answers, and what was said so far.

    Attributes:
        kind: Of the records that were learned; of texts and functions each question is its own.
        data: Names the template.
        thinks: Most answers that were learned do.
        system: Comes before every conversation; "" for nothing.
        turns: What was said, without the system's turn.
    """

    writer: Writer | VllmWriter
    limits: Limits
    tokenizer: CodeTokenizer
    data: DataConfig
    kind: str
    thinks: bool = False
    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    @property
    def is_dialogue(self) -> bool:
        """Whether a question is read after those before it."""
        return KINDS[self.kind].holds not in ("text", "function")

    def answer(self, said: str, is_stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Write an answer, piece by piece; it and the question belong to the conversation then.

        Args:
            said: The question, or the beginning of a text.
            is_stopped: Asked after every token whether the user wants no more.

        Raises:
            DataError: The template cannot write the conversation, or it leaves no room.
        """
        system = [Turn("system", self.system)] if self.system else []
        turns = [*self.turns, Turn("user", said)]
        prompt = asked(
            [*system, *turns] if self.is_dialogue else said,
            self.kind, self.tokenizer, self.data, thinks=self.thinks,
        )  # fmt: skip
        if len(prompt.ids) >= self.limits.seq_length:
            raise DataError(
                f"the conversation is {len(prompt.ids):,} tokens, and the model reads"
                f" {self.limits.seq_length:,} with its answer; {NEW} begins another"
            )
        ids: list[int] = []
        text, num_shown = "", 0
        for token in self.writer.stream(prompt, self.limits):
            if token in prompt.ends:
                break
            ids.append(token)
            text = self.tokenizer.decode(ids).lstrip()
            if not text.endswith("\ufffd"):  # a character can be several tokens
                yield text[num_shown:]
                num_shown = len(text)
            if is_stopped():
                break
        yield text[num_shown:]
        if self.is_dialogue:
            self.turns = [*turns, Turn("assistant", text.rstrip())]


@dataclass
class _Interrupts:
    """Ctrl-C ends an answer while one is written, else the program."""

    is_writing: bool = False
    is_stopped: bool = False

    def __call__(self, *_: object) -> None:
        """The signal has come."""
        if not self.is_writing:
            raise KeyboardInterrupt
        self.is_stopped = True


def converse(chat: Chat) -> int:
    """Answer what stdin says until it ends: answers go to stdout, all else to stderr.

    Returns:
        0, or INTERRUPTED after Ctrl-C while a terminal waits for a question.
    """
    is_terminal, interrupts = sys.stdin.isatty(), _Interrupts()
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    before = signal.getsignal(signal.SIGINT)
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  input() then takes arrow keys
        signal.signal(signal.SIGINT, interrupts)
        print(HELP, file=sys.stderr)
    try:
        while (said := _question("> " if is_terminal else "")) not in (None, EXIT):
            if said == NEW:
                chat.turns = []
            elif said and said.strip():
                _show(chat, said, interrupts)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _show(chat: Chat, said: str, interrupts: _Interrupts) -> None:
    is_first = chat.writer.most is None
    interrupts.is_writing, interrupts.is_stopped = True, False
    try:
        for piece in chat.answer(said, lambda: interrupts.is_stopped):
            print(escaped(piece), end="", flush=True)
        print(flush=True)
    except DataError as error:
        print(escaped(f"error: {error}"), file=sys.stderr, flush=True)
    finally:
        interrupts.is_writing = False
    if is_first and chat.writer.line:
        print(escaped(chat.writer.line), file=sys.stderr, flush=True)


def _question(mark: str) -> str | None:
    """A line, or those between two marks of a block; None at the end of the input."""
    try:
        if (line := input(mark)).strip() != BLOCK:
            return line
        lines: list[str] = []
        with suppress(EOFError):
            while (line := input(mark.replace(">", "."))).strip() != BLOCK:
                lines.append(line)
        return "\n".join(lines)
    except EOFError:
        return None
