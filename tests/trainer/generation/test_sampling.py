"""Answers to many prompts: stock's, and the same in passes of any size.

Equal texts are what float32 on a CPU gives; sampling.py says what can differ elsewhere.
"""

import numpy as np
import pytest
import torch
from language_sets import byte_tokenizer
from transformers import GenerationConfig
from transformers.generation.logits_process import TopPLogitsWarper
from written_texts import DRAWN, TEXTS, asked, language_model, written

from trainer.generation.decoding import Limits, _chosen
from trainer.generation.sampling import Asked, _said


def test_samples_are_the_same_in_passes_of_any_size(tmp_path):
    one, three, eight = (
        written(tmp_path, Limits(90, 40, 0.8, 5, 0.9, together)) for together in (1, 3, 8)
    )
    assert one == three == eight
    assert len({*one}) == 15  # samples of a text differ, or they prove nothing
    assert max(map(len, one)) > 20
    assert written(tmp_path, Limits(90, 40, 0.8, 6, 0.9, 8)) != one


def test_the_most_likely_texts_are_those_of_stock(tmp_path):
    answers = written(tmp_path, Limits(60, 40, together=2), questions=asked(1))
    tokenizer = byte_tokenizer(tmp_path)
    model = language_model("llama", vocab_size=tokenizer.vocab_size)
    base = model.model.get_base_model()
    settings = GenerationConfig(do_sample=False, max_new_tokens=40, use_cache=True, pad_token_id=0)
    for text, answer in zip(TEXTS, answers, strict=True):
        [ids] = tokenizer.encode([text])
        settings.max_new_tokens = min(40, 60 - len(ids))
        settings.eos_token_id = tokenizer.end_id
        prompt = torch.tensor([ids.tolist()])
        stock = base.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
        )
        assert (
            tokenizer.decode(stock[0].tolist()).removesuffix(tokenizer.end_token) == text + answer
        )


def test_a_long_prompt_loses_its_beginning_and_gets_one_token(tmp_path):
    long = [Asked("a" * 30 + "bcdefghijk", (0,)), Asked("bcdefghijk", (0,))]
    whole, ending = written(tmp_path, Limits(10, 5, together=2), questions=long)
    assert whole == ending
    assert len(whole) == 1
    whole, longer = written(tmp_path, Limits(30, 5, together=2), questions=long)
    assert len(whole) == 1
    assert longer.startswith(ending)
    assert len(longer) > 1


def test_an_answer_that_is_over_is_written_no_further(tmp_path):
    whole = written(tmp_path, DRAWN)
    short = written(tmp_path, DRAWN, questions=asked(is_over=lambda text: len(text) >= 5))
    for text, part in zip(whole, short, strict=True):
        assert text.startswith(part.rstrip("\ufffd"))  # bytes that are not yet a character
        assert len(part) >= 5 or part == text
    assert sum(map(len, short)) < sum(map(len, whole)) / 2


def test_the_end_token_is_no_text(tmp_path):
    tokenizer = byte_tokenizer(tmp_path)
    [[a, *more]] = tokenizer.encode(["a bc"])
    assert _said([a], [*more, tokenizer.end_id], tokenizer) == " bc"
    assert _said([a], more, tokenizer) == " bc"
    assert _said([a], [tokenizer.end_id], tokenizer) == ""


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.95])
def test_what_is_drawn_is_stocks_nucleus_by_its_chances(top_p):
    """2,000 draws: within four standard deviations of the chances after stock's own filter."""
    logits_V = torch.tensor([0.1, 2.0, -1.0, 1.0, 0.5, -4.0])
    filtered = TopPLogitsWarper(top_p)(None, logits_V[None] / 0.7)
    chance_V = filtered[0].double().softmax(0).numpy()
    limits, num = Limits(9, 1, temperature=0.7, seed=1, top_p=top_p), 2000
    drawn = _chosen(logits_V.expand(num, -1), [(n, 0) for n in range(num)], limits).numpy()
    counts_V = np.bincount(drawn, minlength=6)
    assert (counts_V[chance_V == 0] == 0).all()
    spread_V = np.sqrt(num * chance_V * (1 - chance_V))
    assert (np.abs(counts_V - num * chance_V) <= 4 * spread_V).all()
