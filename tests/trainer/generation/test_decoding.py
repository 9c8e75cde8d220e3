"""Answers with a cache: those of stock's generate and of passes over whole texts, for any model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from example_sets import example_set
from method_cases import METHODS
from transformers import GenerationConfig
from written_texts import CPU, language_model

from data.batches.batch import collate
from trainer.generation.decoding import Limits, Prompt, Writer
from trainer.models.heads import PackedLanguageModel
from trainer.models.packed_attention import VARLEN, Strategy
from trainer.models.proof import use

END = 9
LENGTHS = (5, 80, 31)  # below and above the windows of tiny models, 64
LIMITS = Limits(seq_length=1000, new_tokens=24)
# How many texts share a pass.
TYPES = {
    "llama": 3, "gpt_bigcode": 3, "gpt2": 3, "bloom": 3, "falcon_alibi": 3, "qwen3_moe": 3,
    "mistral": 3, "gemma2_caps": 3, "gemma3_text": 3, "granite_scaled": 3,  # windows, caps, scales
    "qwen3_next": 3, "mamba": 0,
}  # fmt: skip


def prompts_of(lengths=LENGTHS, ends=frozenset({END})):
    draw = np.random.default_rng(2)
    return [Prompt(draw.integers(10, 2000, length).tolist(), "", ends) for length in lengths]


def written(model, prompts, limits=LIMITS):
    writer = Writer(model, CPU)
    answers = writer.write(prompts, limits)
    assert sum(len({*answer}) for answer in answers) > 10  # else they prove nothing
    return answers, writer


def by_packed_passes(model, prompt, num):
    """The most likely tokens by training's own forward pass, a whole text a token."""
    ids = list(prompt.ids)
    for _ in range(num):
        is_next = np.arange(len(ids) + 1) == len(ids)
        examples = replace(example_set([[*ids, 0]]), supervised=is_next)
        with torch.no_grad():
            [[_, _, choice]] = model(collate(examples, [np.array([0])])).tolist()
        ids.append(int(choice))
    return ids[len(prompt.ids) :]


@pytest.mark.parametrize("name", TYPES)
def test_answers_are_those_of_stock_and_of_whole_passes(name):
    model, prompts = language_model(name), prompts_of()
    answers, writer = written(model, prompts)
    assert writer.most == TYPES[name], writer.fault
    base = model.model.get_base_model()
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=24, eos_token_id=END, pad_token_id=END, use_cache=False
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt.ids])
        for use_cache in (False, True):
            settings.use_cache = use_cache
            stock = base.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )
            assert stock[0, len(prompt.ids) :].tolist() == answer
        assert by_packed_passes(model, prompt, len(answer)) == answer


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_answers_of_every_tuning_method_are_those_of_whole_passes(method):
    model, prompts = language_model("llama", method), prompts_of()
    answers, writer = written(model, prompts)
    assert writer.most == 3, writer.fault
    assert answers != written(language_model("llama"), prompts)[0]  # adapters do something
    for prompt, answer in zip(prompts, answers, strict=True):
        assert by_packed_passes(model, prompt, len(answer)) == answer


def test_a_token_takes_a_pass_over_itself_alone():
    model, seen = language_model("llama"), []
    embeddings = model.model.get_base_model().get_input_embeddings()
    embeddings.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    writer = Writer(model, CPU)
    writer.write(prompts_of(ends=frozenset()), LIMITS)
    proof = [(1, 5), (1, 80), (2, 79), (2, 1)]
    assert seen == [*proof, (3, 80), *[(3, 1)] * 23]
    seen.clear()
    few = Limits(seq_length=300, new_tokens=24)  # 3 texts of 80 + 24 tokens are more than a row
    writer.write(prompts_of(ends=frozenset()), few)
    assert seen == [(2, 31), *[(2, 1)] * 23, (1, 80), *[(1, 1)] * 23]


def test_packed_attention_is_set_again_and_so_is_the_mode():
    model = language_model("llama")
    use(model, strategy := Strategy(VARLEN, "segment_sdpa"))
    for mode in (True, False):
        written(model.train(mode), prompts_of())
        assert model.strategy == strategy
        assert model.model.get_base_model().config._attn_implementation == "segment_sdpa"
        assert model.training is mode


class Forgets(PackedLanguageModel):
    """Its cached passes see nothing of what was before."""

    def forward(self, batch):
        if getattr(batch, "cache", None):
            batch.cache = {}
            batch.mask_NT = batch.mask_NT[:, -1:]
        return super().forward(batch)


class Alone(PackedLanguageModel):
    """Its cache is one for texts without padding only."""

    def forward(self, batch):
        if getattr(batch, "cache", None) and not batch.mask_NT.all():
            raise IndexError("padding")
        return super().forward(batch)


@pytest.mark.parametrize(
    ("kind", "most", "line"),
    [
        (Forgets, 0, "answers take a pass over the whole text a token: with a cache its logits"),
        (Alone, 1, "answers are written one by one: IndexError padding"),
    ],
)
def test_a_cache_that_gives_other_logits_is_not_used(kind, most, line):
    model, prompts = language_model("gpt2"), prompts_of()
    expected, _ = written(model, prompts)
    model.__class__ = kind
    answers, writer = written(model, prompts)
    assert writer.most == most
    assert writer.line.startswith(line)
    assert answers == expected


def test_a_stream_is_the_answer_with_its_end():
    model, [prompt] = language_model("llama"), prompts_of([31])
    [answer], writer = written(model, [prompt])
    assert list(writer.stream(prompt, LIMITS)) == answer
    ends = frozenset({answer[7]})
    assert (
        list(Writer(model, CPU).stream(Prompt(prompt.ids, "", ends), LIMITS))
        == answer[: answer.index(answer[7]) + 1]
    )


class Counts(PackedLanguageModel):
    """The most likely token after t is t + 1."""

    def forward(self, batch):
        return torch.nn.functional.one_hot(batch.ids_NL[:, -1] + 1, 20).float()


def counted(texts, **limits):
    model = language_model("llama")
    model.__class__ = Counts
    prompts = [Prompt(text, "", {END}) for text in texts]
    return Writer(model, CPU).write(prompts, Limits(**{"new_tokens": 64} | limits))


def test_each_answer_goes_on_until_its_end_token_or_a_limit():
    assert counted([[1, 7], [3], [5, 5]], seq_length=100) == [
        [8, END], [4, 5, 6, 7, 8, END], [6, 7, 8, END],
    ]  # fmt: skip
    assert counted([[1, 7], [3]], seq_length=100, new_tokens=3) == [[8, END], [4, 5, 6]]
    assert counted([[1, 1, 3], [3]], seq_length=4) == [[4], [4, 5, 6]]  # prompt and answer
    assert counted([[1, 2, 3, 4]], seq_length=4) == [[]]  # no room
    assert counted([], seq_length=4) == []


def test_a_temperature_draws_tokens_by_their_chances(monkeypatch):
    """The first token of 600 seeds: within four standard deviations of softmax(logits / 2)."""
    logits_V = torch.tensor([1.0, 3.0, 0.0, 2.0])
    model = language_model("llama")
    model.__class__ = Counts
    monkeypatch.setattr(Counts, "forward", lambda _, batch: logits_V.expand(len(batch.ids_NL), -1))
    writer = Writer(model, CPU)
    draws = [
        writer.write([Prompt([1], "", {END})], Limits(9, 1, temperature=2.0, seed=seed))[0][0]
        for seed in range(600)
    ]
    chance_V = (logits_V / 2).softmax(0).double().numpy()
    spread_V = np.sqrt(600 * chance_V * (1 - chance_V))
    assert (np.abs(np.bincount(draws, minlength=4) - 600 * chance_V) < 4 * spread_V).all()


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_cache():
    limits = Limits(1000, 24, temperature=0.7, seed=3)
    model, prompts = language_model("llama"), prompts_of()
    answers, _ = written(model, prompts, limits)
    alone = Writer(model, CPU)
    alone.most = 0
    assert alone.write(prompts, limits) == answers
    other, _ = written(model, prompts, Limits(1000, 24, temperature=0.7, seed=4))
    assert other != answers != written(model, prompts)[0]
