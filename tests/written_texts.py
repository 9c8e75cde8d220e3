"""A tiny language model and what it writes, alone or as one rank of several."""

import json
from pathlib import Path

import torch
from language_sets import byte_tokenizer
from method_cases import tuning
from tiny_models import tiny_config
from transformers import AutoModelForCausalLM

from trainer.config.sections import LossSection
from trainer.generation.decoding import Limits, Writer
from trainer.generation.sampling import Asked, generate
from trainer.models.heads import PackedLanguageModel
from trainer.models.output import output_function
from trainer.processes.distributed import Ranks, start, stop
from trainer.tuning import METHODS as FUNCTIONS

CPU = torch.device("cpu")
TEXTS = ("int f(", "def longer_name(a, b):\n    return", "x", "é = [", "for (int i = 0; i < n")
DRAWN = Limits(90, 40, temperature=0.8, seed=5, top_p=0.9, together=8)
ALONE = Ranks(0, 0, 1, CPU)


def language_model(name, method="full", **settings):
    """A model whose adapters, if any, change what it says."""
    torch.manual_seed(1)
    config = tiny_config(name)
    config.update(settings)
    # or some types write one token only, the one before it
    config.initializer_range, config.tie_word_embeddings = 0.2, False
    base = AutoModelForCausalLM.from_config(config).eval()
    scale, cap = output_function(base, torch.tensor([[5, 6, 7]]))
    section = tuning(method)
    model = PackedLanguageModel(
        FUNCTIONS[section.method](base, section), LossSection(backend="torch")
    )
    model.loss.scale, model.loss.cap = scale, cap
    for parameter in model.parameters():
        if parameter.requires_grad and method != "full":
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def asked(num_samples=3, **more):
    return [Asked(text, (n, k), **more) for n, text in enumerate(TEXTS) for k in range(num_samples)]


def written(folder, limits, ranks=ALONE, questions=None):
    tokenizer = byte_tokenizer(folder)
    model = language_model("llama", vocab_size=tokenizer.vocab_size)
    answers = {}
    writer = Writer(model, ranks.device, is_alone=True)
    for part in generate(questions or asked(), writer, tokenizer, limits, ranks):
        answers |= part
    return [answers[n] for n in range(len(answers))]


def on_a_rank(arguments):
    """Entry of a rank: write all answers as JSON."""
    ranks = start(60)
    folder = Path(arguments[0])
    answers = written(folder / f"tokenizer-{ranks.rank}", DRAWN, ranks)
    (folder / f"{ranks.world_size}-{ranks.rank}.json").write_text(json.dumps(answers))
    stop()
    return 0
