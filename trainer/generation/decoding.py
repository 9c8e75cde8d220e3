"""Greedy answers to a few prompts, by the model in training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from data.batches.batch import collate
from data.text.tokenization import ExampleSet
from trainer.processes.distributed import of_main

NEW_TOKENS = 64


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        ids: Tokens before the answer.
        text: The same as text.
        reference: The answer of the data; "" where there is none.
    """

    ids: list[int]
    text: str
    reference: str = ""


def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    end_id: int,
    device: torch.device,
    *,
    seq_length: int,
    new_tokens: int = NEW_TOKENS,
) -> list[list[int]]:
    """The most likely continuation of every prompt; called by all ranks.

    Each token is a pass over the whole prompts, without a cache: they go through the same packed
    forward, under every ZeRO stage, that is trained.

    Args:
        model: Batch -> scores (S, 3), of which the third column is the first choice; left in
            training mode.
        prompts: Token ids, none empty.
        end_id: Where an answer ends; it is part of it.
        device: Of the model.
        seq_length: Where an answer ends at the latest, its prompt included.
        new_tokens: Of an answer, at most.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    model.eval()
    with torch.no_grad():
        for _ in range(new_tokens):
            asked = [
                n
                for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
                if answer[-1:] != [end_id] and len(prompt) + len(answer) < seq_length
            ]
            if not asked:
                break
            examples = _asked([[*prompts[n], *answers[n]] for n in asked])
            rows = [np.array([row]) for row in range(len(asked))]
            # Of one rank: where two tokens are nearly as likely, others could choose otherwise.
            chosen = of_main(model(collate(examples, rows).to(device))[:, 2].long())
            for n, token in zip(asked, chosen.tolist(), strict=True):
                answers[n].append(token)
    model.train()
    return answers


def _asked(texts: Sequence[Sequence[int]]) -> ExampleSet:
    """Examples whose only target is the token after the last."""
    tokens = [token for text in texts for token in [*text, 0]]
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)], dtype=np.int64)
    supervised = np.zeros(len(tokens), np.bool_)
    supervised[starts[1:] - 1] = True
    num = len(texts)
    return ExampleSet(
        tokens=np.array(tokens, dtype=np.int32),
        starts=starts,
        record_E=np.arange(num),
        label_E=np.zeros(num, np.int8),
        share_E=np.ones(num),
        weight_E=np.ones(num, np.float32),
        num_records=num,
        supervised=supervised,
    )
