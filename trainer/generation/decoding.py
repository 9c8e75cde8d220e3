"""Texts that a language model writes after prompts, token by token.

A cache keeps what the model has computed, so that a new token takes a pass over itself alone. It is
proved on the prompts: with it, the last token's logits are those of a pass over the whole text.
Where they are not, or the model has no cache, each token takes a pass over the whole text.

N texts, K tokens of one text, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import first_line
from trainer.models.as_saved import DTYPES
from trainer.models.heads import PackedLanguageModel
from trainer.models.proof import TOLERANCE, is_of_model, use
from trainer.models.writing import Texts, has_cache
from trainer.processes.distributed import of_main

Ids = Sequence[int]


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        ends: Tokens any of which ends an answer.
        reference: The answer in the data, or "".
        most: Tokens of its answer at most, whatever the limits say; None: as they say.
        place: What is drawn for it depends on; (): its number among the prompts.
        is_over: Whether an answer needs no more tokens, asked after every eighth.
        stops: Texts any of which makes an answer over; not all that do.
    """

    ids: list[int]
    text: str
    ends: Set[int]
    reference: str = ""
    most: int | None = None
    place: tuple[int, ...] = ()
    is_over: Callable[[Ids], bool] = lambda _: False
    stops: Sequence[str] = ()


@dataclass(frozen=True)
class Limits:
    """How a model writes.

    Attributes:
        seq_length: Most tokens of a prompt and its answer.
        new_tokens: Most tokens of an answer.
        temperature: 0 takes the most likely token; else one is drawn, by `seed`.
        top_p: Tokens that are drawn are those whose chances together reach this, the most likely
            first (Holtzman et al. 2020).
        together: Texts that share a pass; None: as many as a row of seq_length has room for.
    """

    seq_length: int
    new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    top_p: float = 1.0
    together: int | None = None


class Writer:
    """Writes after prompts with a language model; all ranks call it alike.

    Args:
        model: The engine, or the model itself: Texts -> logits (N, V). It keeps its mode.
        device: Of the model.
        is_alone: This rank writes texts of its own, without the others.

    Attributes:
        most: Texts that share a pass; 0: each token takes a pass over the whole text. None before
            the first prompts, which prove it.
        fault: What keeps texts from sharing passes with a cache; "" where nothing does.
    """

    at_once = 1  # texts of one call, at least

    def __init__(self, model: nn.Module, device: torch.device, *, is_alone: bool = False) -> None:
        self.model, self.device = model, device
        self.agreed: Callable[[Tensor], Tensor] = (lambda one: one) if is_alone else of_main
        packed: Any = getattr(model, "module", model)  # the engine's
        self.packed: PackedLanguageModel = packed
        self.most: int | None = None
        self.fault = ""

    def write(self, prompts: Sequence[Prompt], limits: Limits) -> list[list[int]]:
        """The answer to each prompt, with the token that ends it."""
        answers: list[list[int]] = [[] for _ in prompts]

        def pending(numbers: Iterable[int]) -> list[int]:
            return [n for n in numbers if not is_whole(prompts[n], answers[n], limits)]

        with self._as_stock():
            self.prove([prompt.ids for prompt in prompts])
            while left := pending(range(len(prompts))):
                texts = {n: [*prompts[n].ids, *answers[n]] for n in left}
                group = self._group(texts, limits)
                room = limits.seq_length - max(len(texts[n]) for n in group)
                steps = self._steps(
                    [texts[n] for n in group],
                    lambda: [(*(prompts[n].place or (n,)), len(answers[n])) for n in group],  # noqa: B023
                    limits,
                )
                for tokens in islice(steps, room):
                    for n, token in zip(group, tokens, strict=True):
                        answers[n] += [token] if pending([n]) else []
                    if not pending(group):
                        break
        return answers

    def stream(self, prompt: Prompt, limits: Limits) -> Iterator[int]:
        """The tokens of one answer as they are chosen, with the one that ends it."""
        answer: list[int] = []
        with self._as_stock():
            self.prove([prompt.ids])
            steps = self._steps(
                [prompt.ids], lambda: [(*(prompt.place or (0,)), len(answer))], limits
            )
            while not is_whole(prompt, answer, limits):
                answer += next(steps)
                yield answer[-1]

    @property
    def line(self) -> str:
        """How it writes, if not with a cache for all prompts at once."""
        if not self.fault:
            return ""
        how = "are written one by one" if self.most else "take a pass over the whole text a token"
        return f"answers {how}: {self.fault}"

    @contextmanager
    def _as_stock(self) -> Iterator[None]:
        """Around passes in evaluation mode: packed attention has no cache, stock's has."""
        was_training, strategy = self.model.training, self.packed.strategy
        self.model.eval()
        use(self.packed, self.packed.stock)
        try:
            yield
        finally:
            use(self.packed, strategy)
            self.model.train(was_training)

    def _group(self, texts: Mapping[int, Ids], limits: Limits) -> list[int]:
        """Texts of similar lengths that go on together, with no more tokens than a row if several.

        So the cache takes no more memory than training does.
        """
        group: list[int] = []
        for n in sorted(texts, key=lambda n: len(texts[n])):
            num = len(group) + 1
            places = (len(texts[n]) + limits.new_tokens) * num
            fits = num <= limits.together if limits.together else places <= limits.seq_length
            if group and (num > (self.most or 1) or not fits):
                break
            group.append(n)
        return group

    def _steps(
        self, texts: Sequence[Ids], places: Callable[[], list[tuple[int, ...]]], limits: Limits
    ) -> Iterator[list[int]]:
        """The next token of each text, one after the other.

        Args:
            texts: Up to where they go on.
            places: Number of the prompt and of the token in its answer, for each text.
            limits: Temperature and seed.
        """
        part = Texts.of(texts, self.device, is_kept=bool(self.most))
        while True:
            # One rank chooses: others could differ where two tokens are nearly as likely.
            chosen_N = self.agreed(_chosen(self._logits(part), places(), limits))
            yield chosen_N.tolist()
            if self.most:
                part = part.followed_by(chosen_N[:, None])
                continue
            pairs = zip(texts, chosen_N.tolist(), strict=True)
            texts = [[*text, token] for text, token in pairs]
            part = Texts.of(texts, self.device, is_kept=False)

    def prove(self, texts: Sequence[Ids]) -> None:
        """Settle how many texts share a pass, once, by the shortest and the longest of these."""
        if self.most is not None or not texts:
            return
        self.most = 0
        if not has_cache(self.packed.model):
            kind = self.packed.model.get_base_model().config.model_type
            self.fault = f"transformers gives {kind} no cache of keys and values"
            return
        shortest, *_, longest = [*sorted(texts, key=len), max(texts, key=len)]
        together = [shortest, longest] if len(texts) > 1 else [longest]
        for tried in (together, [longest]):
            if not (fault := self._fault_of_cache(tried)):
                self.most = len(texts) if len(tried) > 1 else 1
                return
            self.fault = fault

    def _fault_of_cache(self, texts: Sequence[Ids]) -> str:
        """How logits after a cached beginning differ from those of whole texts; "" if not."""
        texts = [text if len(text) > 1 else [*text, *text] for text in texts]
        whole = [Texts.of([text], self.device, is_kept=False) for text in texts]
        whole_NV = torch.cat([self._logits(one) for one in whole])
        try:
            part = Texts.of([text[:-1] for text in texts], self.device)
            self._logits(part)
            lasts = torch.tensor([text[-1:] for text in texts]).to(self.device)
            cached_NV = self._logits(part.followed_by(lasts))
        except Exception as error:
            if not is_of_model(error):
                raise
            return first_line(error)
        scale = whole_NV.abs().max().clamp(min=1.0)
        difference = float(self.agreed((cached_NV - whole_NV).abs().max() / scale))
        dtype = self.packed.model.get_base_model().dtype
        if difference <= next(TOLERANCE[name] for name, one in DTYPES.items() if one == dtype):
            return ""
        return f"with a cache its logits differ by {difference:.1e} of the largest"

    def _logits(self, texts: Texts) -> Tensor:
        with torch.no_grad():
            logits_NV: Tensor = self.model(texts)
        return logits_NV


def most_tokens(prompt: Prompt, limits: Limits) -> int:
    """Tokens that an answer has at most."""
    most = min(limits.new_tokens, limits.seq_length - len(prompt.ids))
    return most if prompt.most is None else prompt.most


def is_whole(prompt: Prompt, answer: Ids, limits: Limits) -> bool:
    """Whether an answer has its end, or all tokens that it may have."""
    num = len(answer)
    if num >= most_tokens(prompt, limits):
        return True
    return num > 0 and (answer[-1] in prompt.ends or (num % 8 == 0 and prompt.is_over(answer)))


def _chosen(logits_NV: Tensor, places: Sequence[tuple[int, ...]], limits: Limits) -> Tensor:
    """The most likely token (N,) of each row, or one drawn, in float64.

    What is drawn depends on the seed and the place alone, not on which texts share a pass; logits
    do, in their last bits. One number is drawn for a place and looked up in the sums of chances
    in the order of the ids, so that a last bit moves a border and never reorders tokens.
    """
    if not limits.temperature:
        return logits_NV.argmax(-1)
    chance_NV = (logits_NV.double() / limits.temperature).softmax(-1)
    if limits.top_p < 1:
        falling_NV, id_NV = chance_NV.sort(descending=True, stable=True)
        is_kept_NV = falling_NV.cumsum(-1) - falling_NV < limits.top_p
        chance_NV = torch.zeros_like(chance_NV).scatter(-1, id_NV, falling_NV * is_kept_NV)
    sum_NV = chance_NV.cumsum(-1)
    draws = [[np.random.default_rng([limits.seed, *place]).random()] for place in places]
    draw_N1 = torch.tensor(draws, dtype=torch.float64, device=sum_NV.device)
    return torch.searchsorted(sum_NV, draw_N1 * sum_NV[:, -1:], right=True)[:, 0]
