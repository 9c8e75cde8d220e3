"""Texts that vLLM writes after prompts, in place of our own writer, where it is installed.

Written against vLLM's documentation (docs/suites.md has the version) and never run with the package
itself, which is none of our dependencies. Token ids go in and come out, so both writers share
tokenizer, stop rules and limits; what is drawn differs, with equal chances.
"""

import os
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import json_object, parsing
from data.text import terminal
from trainer.config.methods import LORA
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError, ModelError
from trainer.generation.decoding import Ids, Limits, Prompt, is_whole, most_tokens
from trainer.processes.distributed import Ranks
from trainer.run_folder.folder import FACTS

ENGINES = ("auto", "own", "vllm")
RANKS_OF_LORA = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what max_lora_rank can be
_PART, _SHOWN = 256, 16  # tokens that one call writes, of many texts and of one that is shown
_CHECKED = 8  # as Writer, an answer is over only after so many tokens
_COLDEST, _HOTTEST = 0.01, 2.0
_OFFLINE = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class VllmWriter:
    """Writes after prompts as `decoding.Writer` does, with vLLM on the GPU of a rank.

    Args:
        config: Its model.path is the base, or the whole model; precision is settled.
        folder: Of the adapter and the tokenizer, or of the whole model.
        longest: Most tokens of a prompt and its answer, one more than the model reads.

    Raises:
        ModelError: vLLM does not load it.
    """

    at_once = 512  # texts of one call; vLLM chooses which of them share a pass
    most: int | None = 0
    line = ""

    def __init__(self, config: RunConfig, folder: Path, ranks: Ranks, longest: int) -> None:
        # In this process the scheduler is deterministic; beside other ranks vLLM needs its own
        # process, where no group of theirs is known, with the GPU of its rank.
        is_alone = ranks.world_size == 1
        os.environ.update(_OFFLINE, VLLM_ENABLE_V1_MULTIPROCESSING="0" if is_alone else "1")
        if not is_alone:
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            os.environ["CUDA_VISIBLE_DEVICES"] = own_gpu(seen, ranks.local_rank)
        options = _options(config, folder) | {"max_model_len": longest}
        remedy = "take --engine own, or export.py --merge and measure that folder"
        with parsing(f"vLLM does not load {folder}", ModelError, remedy):
            from vllm import LLM
            from vllm.lora.request import LoRARequest

            is_adapter = "enable_lora" in options
            self.lora = LoRARequest("adapter", 1, str(folder)) if is_adapter else None
            self.llm = LLM(**options)
        self.longest = longest

    def prove(self, texts: Sequence[Ids]) -> None:
        """Nothing to prove: vLLM's cache is its own."""

    def write(self, prompts: Sequence[Prompt], limits: Limits) -> list[list[int]]:
        """The answer to each prompt, with the token that ends it.

        An answer that no stop string ends, because a brace closes its function, is written in
        parts; vLLM finds what it has read in its cache.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        left = list(range(len(prompts)))
        while left := [n for n in left if not is_whole(prompts[n], answers[n], limits)]:
            parts = self._go_on([(n, prompts[n], answers[n]) for n in left], limits, _PART)
            stopped = set()
            for n, (new, is_stopped) in zip(left, parts, strict=True):
                first = len(answers[n]) // _CHECKED * _CHECKED + _CHECKED
                answers[n] += new
                for num in range(first, len(answers[n]) + 1, _CHECKED):
                    if prompts[n].is_over(answers[n][:num]):
                        del answers[n][num:]
                        break
                stopped |= {n} if is_stopped else set()
            left = [n for n in left if n not in stopped]
        return answers

    def stream(self, prompt: Prompt, limits: Limits) -> Iterator[int]:
        """The tokens of one answer, a few at a time, with the one that ends it."""
        answer: list[int] = []
        while not is_whole(prompt, answer, limits):
            [(new, is_stopped)] = self._go_on([(0, prompt, answer)], limits, _SHOWN)
            for token in new:
                answer.append(token)
                yield token
            if is_stopped:
                return

    def _go_on(
        self, texts: Sequence[tuple[int, Prompt, Ids]], limits: Limits, most: int
    ) -> list[tuple[list[int], bool]]:
        """New tokens of each text, and whether an end or a stop string stopped it.

        Args:
            texts: Number of the prompt, the prompt, and its answer so far.
            most: New tokens at most.
        """
        from vllm import SamplingParams, TokensPrompt

        asked, ways = [], []
        for n, prompt, answer in texts:
            ids = [*prompt.ids, *answer][-(self.longest - 1) :]
            asked.append(TokensPrompt(prompt_token_ids=ids))
            drawn: dict[str, Any] = {"temperature": 0.0}
            if limits.temperature:
                seed = seed_of(limits.seed, (*(prompt.place or (n,)), len(answer)))
                drawn = {"temperature": limits.temperature, "top_p": limits.top_p, "seed": seed}
            ways.append(
                SamplingParams(
                    n=1, **drawn, max_tokens=min(most, most_tokens(prompt, limits) - len(answer)),
                    stop=list(prompt.stops), stop_token_ids=sorted(prompt.ends), ignore_eos=True,
                    detokenize=bool(prompt.stops), skip_special_tokens=False,
                )
            )  # fmt: skip
        written = self.llm.generate(asked, ways, use_tqdm=False, lora_request=self.lora)
        parts = []
        for (_, prompt, _), request in zip(texts, written, strict=True):
            [one] = request.outputs
            new = list(one.token_ids)
            if one.stop_reason in prompt.ends and new[-1:] != [one.stop_reason]:
                new.append(one.stop_reason)  # vLLM leaves special ones out
            parts.append((new, one.finish_reason == "stop"))
        return parts


def takes_vllm(
    engine: str, config: RunConfig, folder: Path, ranks: Ranks, temperature: float = 0.0
) -> bool:
    """Whether vLLM writes; "auto" takes it where it is installed, sees a GPU and knows the model.

    Raises:
        ConfigError: It is asked for and cannot.
    """
    assert engine in ENGINES
    if engine == "own":
        return False
    missing = _missing(ranks)
    fault = missing or _fault(config, folder)
    if not fault and temperature and not _COLDEST <= temperature <= _HOTTEST:
        fault = f"it draws at temperatures from {_COLDEST:g} to {_HOTTEST:g}"
    if engine == "vllm" and fault:
        raise ConfigError(f"--engine vllm: {fault}; --engine own writes without it")
    if ranks.is_main and not missing:
        said = f"own, because {fault}" if fault else f"vLLM {_version()}"
        terminal.say(f"  engine     {said}")
    return not fault


def own_gpu(seen: str, local_rank: int) -> str:
    """The name of a rank's GPU, of those that CUDA_VISIBLE_DEVICES names; "" names none."""
    names = [name for name in seen.split(",") if name]
    return names[local_rank] if names else str(local_rank)


def seed_of(seed: int, place: Sequence[int]) -> int:
    """One of 2^63 seeds for a run's seed and the place of what is drawn."""
    return int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0] >> 1)


def _missing(ranks: Ranks) -> str:
    if find_spec("vllm") is None:
        return "vLLM is not installed here; docs/suites.md says how it is"
    return "" if _sees_gpu(ranks) else "vLLM writes on a GPU, and torch sees none"


def _sees_gpu(ranks: Ranks) -> bool:
    return ranks.device.type == "cuda"


def _fault(config: RunConfig, folder: Path) -> str:
    """Why vLLM cannot write with a model, and which folder it can take; "" where it can."""
    tuning, merged = config.tuning, f"launcher/export.py {folder} NEW_FOLDER --merge makes one"
    if tuning.base_quant_type not in (None, "nf4") or (
        tuning.base_quant_type and not tuning.double_quant
    ):
        return (
            "vLLM quantises a base to nf4 with double quantisation, this one was"
            f" {tuning.base_quant_type}{'' if tuning.double_quant else ' with single'}; measure a"
            f" merged model: {merged} with --onto dequantized"
        )
    if tuning.method == "full":
        return ""
    reasons = [f"a {tuning.method} adapter"] if tuning.method not in LORA else []
    reasons = reasons or [name for name, is_so in _foreign(folder).items() if is_so]
    if not reasons:
        return ""
    return f"vLLM reads plain LoRA, this is {reasons[0]}; measure a merged model: {merged}"


def _foreign(folder: Path) -> dict[str, bool]:
    """What of an adapter vLLM's LoRA does not know."""
    settings = json_object(folder / "adapter_config.json", ModelError, "copy the folder again")
    facts = json_object(folder / FACTS, ModelError, "copy the folder again")
    ranks = [settings["r"], *(settings.get("rank_pattern") or {}).values()]
    return {
        "DoRA": bool(settings.get("use_dora")),
        "one with layers trained as a whole": bool(settings.get("modules_to_save")),
        "one with trained biases": settings.get("bias", "none") != "none",
        "one with trained tokens": bool(settings.get("trainable_token_indices")),
        "one of parameters that are no layers": bool(settings.get("target_parameters")),
        "one whose layers have scales of their own": bool(
            settings.get("rank_pattern") or settings.get("alpha_pattern")
        ),
        f"one of rank {max(ranks)}, above {RANKS_OF_LORA[-1]}": max(ranks) > RANKS_OF_LORA[-1],
        "one of a multimodal base's text model": bool(facts.get("key_mapping")),
    }


def _options(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Arguments of vllm.LLM: local files, no foreign code, the model as it was trained."""
    dtypes = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    options: dict[str, Any] = {
        "model": str(config.model.path), "tokenizer": str(folder), "trust_remote_code": False,
        "dtype": dtypes[config.base_dtype], "tensor_parallel_size": 1, "seed": 0,
        "generation_config": "vllm", "enforce_eager": True,  # our commands switch Dynamo off
    }  # fmt: skip
    if config.tuning.base_quant_type is not None:
        options["quantization"] = "bitsandbytes"
    if config.tuning.method != "full":
        rank = json_object(folder / "adapter_config.json", ModelError, "copy it again")["r"]
        rank = next(one for one in RANKS_OF_LORA if one >= rank)
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
    return options


def _version() -> str:
    try:
        return version("vllm")
    except PackageNotFoundError:
        return "of unknown version"
