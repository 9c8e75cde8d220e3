"""Greedy answers of the model in training to a few prompts."""

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
        reference: The answer in the data, or "".
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
    """The most likely continuation of every prompt; all ranks call this.

    Each new token takes a pass over the whole texts, without a cache: it uses the packed forward
    pass of training, which works under every ZeRO stage.

    Args:
        model: Batch -> scores (S, 3), whose third column is the most likely token; left in
            training mode.
        prompts: Token ids, none empty.
        end_id: Last token of an answer.
        seq_length: Most tokens of a prompt and its answer.
        new_tokens: Most tokens of an answer.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    model.eval()
    with torch.no_grad():
        for _ in range(new_tokens):
            unfinished = [
                n
                for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
                if answer[-1:] != [end_id] and len(prompt) + len(answer) < seq_length
            ]
            if not unfinished:
                break
            examples = _examples([[*prompts[n], *answers[n]] for n in unfinished])
            rows = [np.array([row]) for row in range(len(unfinished))]
            # One rank chooses: others could differ where two tokens are nearly as likely.
            chosen = of_main(model(collate(examples, rows).to(device))[:, 2].long())
            for n, token in zip(unfinished, chosen.tolist(), strict=True):
                answers[n].append(token)
    model.train()
    return answers


def _examples(texts: Sequence[Sequence[int]]) -> ExampleSet:
    """Examples whose only target is the next token."""
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
