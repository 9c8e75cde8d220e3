"""Greedy decoding, with a model that counts upwards."""

import torch

from trainer.generation.decoding import greedy

END = 9


class Counts(torch.nn.Module):
    """The most likely token after t is t + 1."""

    def forward(self, batch):
        last_S = batch.input_ids_BT[batch.row_S, batch.read_S]
        return torch.stack([torch.zeros(len(last_S)), torch.zeros(len(last_S)), last_S + 1.0], 1)


def answers(prompts, **limits):
    model = Counts()
    found = greedy(model, prompts, END, torch.device("cpu"), **limits)
    assert model.training
    return found


def test_each_answer_goes_on_until_its_end_token_or_a_limit():
    assert answers([[1, 7], [3], [5, 5]], seq_length=100) == [
        [8, END], [4, 5, 6, 7, 8, END], [6, 7, 8, END],
    ]  # fmt: skip
    assert answers([[1, 7], [3]], seq_length=100, new_tokens=3) == [[8, END], [4, 5, 6]]
    assert answers([[1, 1, 3], [3]], seq_length=4) == [[4], [4, 5, 6]]  # prompt and answer


def test_a_prompt_without_room_has_no_answer():
    assert answers([[1, 2, 3, 4]], seq_length=4) == [[]]
