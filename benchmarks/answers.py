"""CPU time of the answers of a validation: with a cache, by whole passes, and by stock's generate.

OMP_NUM_THREADS=1 .venv/bin/python benchmarks/answers.py --tokens 100 200 400
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure import measure
from benchmarks.tables import print_table
from data.batches.batch import collate
from data.text.tokenization import ExampleSet
from trainer.config.methods import SEGMENT_SDPA
from trainer.config.sections import LossSection
from trainer.generation.decoding import Limits, Prompt, Writer
from trainer.models.heads import PackedLanguageModel
from trainer.models.packed_attention import VARLEN, Strategy
from trainer.models.proof import use
from trainer.tuning.plain import PlainModel

VOCABULARY, WIDTH, LAYERS, HEADS = 4096, 256, 6, 4
PROMPTS, NEW_TOKENS = 3, 64
CPU = torch.device("cpu")
Answers = list[list[int]]


def random_model() -> PackedLanguageModel:
    """A Llama of random weights that never writes the token that ends an answer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, max_position_embeddings=4096,
        initializer_range=0.1,
    )  # fmt: skip
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    model = PackedLanguageModel(PlainModel(base), LossSection(backend="torch"))
    use(model, Strategy(VARLEN, SEGMENT_SDPA))
    return model.eval()


def packed_passes(model: PackedLanguageModel, prompts: Sequence[Prompt]) -> Answers:
    """All texts in one packed row, whole, for each token: what validation did before."""
    texts = [list(prompt.ids) for prompt in prompts]
    for _ in range(NEW_TOKENS):
        tokens = np.array([token for text in texts for token in [*text, 0]], np.int32)
        starts = np.cumsum([0, *(len(text) + 1 for text in texts)], dtype=np.int64)
        supervised = np.zeros(len(tokens), np.bool_)
        supervised[starts[1:] - 1] = True
        num = len(texts)
        examples = ExampleSet(
            tokens, starts, np.arange(num), np.zeros(num, np.int8), np.ones(num),
            np.ones(num, np.float32), num, supervised=supervised,
        )  # fmt: skip
        with torch.no_grad():
            scores = model(collate(examples, [np.arange(num)]))
        for text, token in zip(texts, scores[:, 2].tolist(), strict=True):
            text.append(int(token))
    return [text[-NEW_TOKENS:] for text in texts]


def stock(model: PackedLanguageModel, prompts: Sequence[Prompt]) -> Answers:
    """transformers' generate with its cache; all prompts are of one length."""
    ids = torch.tensor([prompt.ids for prompt in prompts])
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0
    )
    base = model.model.get_base_model()
    before = model.strategy
    use(model, model.stock)
    try:
        written = base.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )
    finally:
        use(model, before)
    return [row[-NEW_TOKENS:] for row in written.tolist()]


def cached(model: PackedLanguageModel, prompts: Sequence[Prompt]) -> Answers:
    """What validation does, with the proof of the cache in it."""
    return Writer(model, CPU).write(prompts, Limits(1 << 20, NEW_TOKENS))


WAYS: dict[str, Callable[[PackedLanguageModel, Sequence[Prompt]], Answers]] = {
    "whole passes, packed": packed_passes,
    "generate of transformers": stock,
    "cache, with its proof": cached,
}


def main(arguments: list[str]) -> int:
    """Measure each way on prompts of each length; fail where answers differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args(arguments)
    model, draw, rows = random_model(), np.random.default_rng(0), []
    for tokens in given.tokens:
        ids = draw.integers(0, VOCABULARY, (PROMPTS, tokens)).tolist()
        prompts = [Prompt(one, "", frozenset()) for one in ids]
        answers: list[Answers] = []
        seconds = [
            measure(lambda: answers.append(way(model, prompts)), CPU, given.repeats)["seconds"]  # noqa: B023
            for way in WAYS.values()
        ]
        if any(one != answers[0] for one in answers):
            print(f"prompts of {tokens} tokens: the answers differ", file=sys.stderr)
            return 1
        first, last = seconds[0], seconds[-1]
        rows.append([str(tokens), *(f"{one:.2f} s" for one in seconds), f"{first / last:.1f}x"])
    print_table(["tokens of a prompt", *WAYS, "first / last"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
