"""A module `vllm` that checks its arguments against the documentation and answers with our draws.

Names, defaults and rules are those of vLLM's documentation (docs/suites.md names the version). The
model and the adapter are loaded by stock transformers and PEFT. What it proves is what our side
hands over and what it makes of the answer, nothing of vLLM itself.
"""

import os
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

import torch

from trainer.generation import vllm_writer
from trainer.generation.decoding import Limits, _chosen

ENGINE_ARGS = {  # of vllm.EngineArgs, what LLM passes on
    "max_model_len", "enable_lora", "max_loras", "max_lora_rank", "generation_config",
    "disable_log_stats", "distributed_executor_backend", "data_parallel_size", "max_num_seqs",
    "enable_prefix_caching", "load_format",
}  # fmt: skip
LOADED: list["LLM"] = []


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        assert self.n == 1
        assert 0 <= self.temperature <= 2
        assert 0 < self.top_p <= 1
        assert self.seed is None or (type(self.seed) is int and -(2**63) <= self.seed < 2**63)
        assert (self.seed is None) == (self.temperature == 0)
        assert isinstance(self.stop, list)
        assert all(isinstance(text, str) and text for text in self.stop)
        assert self.detokenize or not self.stop
        assert isinstance(self.stop_token_ids, list)
        assert all(type(token) is int for token in self.stop_token_ids)
        assert type(self.max_tokens) is int
        assert self.max_tokens >= 1
        assert self.ignore_eos  # the ends of an answer are ours alone


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        assert self.lora_int_id >= 1
        assert self.lora_path


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


class LLM:
    def __init__(
        self, model: str, *, tokenizer: str | None = None, tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False, trust_remote_code: bool = False,
        tensor_parallel_size: int = 1, dtype: str = "auto", quantization: str | None = None,
        revision: str | None = None, tokenizer_revision: str | None = None, seed: int = 0,
        gpu_memory_utilization: float = 0.92, enforce_eager: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        assert not set(kwargs) - ENGINE_ARGS, kwargs
        assert all(os.environ[name] == "1" for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"))
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        assert not trust_remote_code
        assert not skip_tokenizer_init  # stop strings need it
        assert dtype == "float32"  # that of the tests' models
        assert tensor_parallel_size == 1
        assert enforce_eager or "TORCHDYNAMO_DISABLE" not in os.environ  # nothing would compile
        assert quantization is None
        assert type(kwargs["max_model_len"]) is int
        assert Path(model).is_dir()
        assert tokenizer
        assert Path(tokenizer).is_dir()
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        assert kwargs["max_model_len"] <= self.model.config.max_position_embeddings
        self.kwargs, self.peft_class, self.is_adapted = kwargs, PeftModel, False
        self.handed: list[SamplingParams] = []
        LOADED.append(self)

    def generate(
        self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True,
        lora_request: Any = None, priority: Any = None, tokenization_kwargs: Any = None,
    ) -> list[RequestOutput]:  # fmt: skip
        assert not use_tqdm
        assert isinstance(sampling_params, list)
        assert len(sampling_params) == len(prompts)
        if lora_request is not None and not self.is_adapted:
            assert self.kwargs["enable_lora"]
            assert self.kwargs["max_lora_rank"] in (1, 8, 16, 32, 64, 128, 256, 320, 512)
            self.model = self.peft_class.from_pretrained(self.model, lora_request.lora_path).eval()
            rank = self.model.peft_config["default"].r
            assert rank <= self.kwargs["max_lora_rank"]
            self.is_adapted = True
        self.handed += sampling_params
        pairs = zip(prompts, sampling_params, strict=True)
        return [self._written(prompt["prompt_token_ids"], ways) for prompt, ways in pairs]

    def _written(self, prompt: list[int], ways: SamplingParams) -> RequestOutput:
        assert 0 < len(prompt) < self.kwargs["max_model_len"]
        assert all(type(token) is int for token in prompt)
        ids, reason, stop, cache = [], "length", None, None
        room = min(ways.max_tokens, self.kwargs["max_model_len"] - len(prompt))
        limits = Limits(0, 0, ways.temperature, _SEED, ways.top_p)
        part = prompt
        while len(ids) < room:
            with torch.no_grad():
                out = self.model(torch.tensor([part]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            place = _moved(PLACES[ways.seed], len(ids)) if ways.seed is not None else ()
            part = _chosen(out.logits[:, -1], [place], limits).tolist()
            if part[0] in ways.stop_token_ids:
                reason, stop = "stop", part[0]
                break  # special tokens are left out of the output
            ids += part
            text = self.tokenizer.decode(ids, skip_special_tokens=ways.skip_special_tokens)
            if found := [one for one in ways.stop if one in text]:
                reason, stop = "stop", found[0]
                break
        return RequestOutput(prompt, [CompletionOutput(0, "", ids, reason, stop)])


_SEED = 0
PLACES = {
    vllm_writer.seed_of(_SEED, (item, sample, start)): (item, sample, start)
    for item in range(8)
    for sample in range(20)
    for start in range(0, 1024, 256)
}
"""What a suite draws for a seed: our own draws are by place, vLLM's by seed."""
IN_A_CHAT = {vllm_writer.seed_of(_SEED, (0, start)): (0, start) for start in range(0, 256, 16)}
assert len(PLACES) == 8 * 20 * 4  # no two alike


def _moved(place: tuple[int, ...], num: int) -> tuple[int, ...]:
    return (*place[:-1], place[-1] + num)


def modules() -> dict[str, ModuleType]:
    """What sys.modules has where vLLM is installed."""
    package, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams, package.TokensPrompt = LLM, SamplingParams, TokensPrompt
    request.LoRARequest = LoRARequest
    package.__spec__ = ModuleSpec("vllm", None)
    return {"vllm": package, "vllm.lora": ModuleType("vllm.lora"), "vllm.lora.request": request}


def measure(arguments: list[str]) -> int:
    """Entry of a rank: launcher/suite.py beside this vLLM, on a GPU by name."""
    from launcher.suite import main

    sys.modules.update(modules())
    vllm_writer._sees_gpu = lambda ranks: True
    os.environ["CUDA_VISIBLE_DEVICES"] = "6,7"
    code = main(arguments)
    told = [os.environ["CUDA_VISIBLE_DEVICES"], os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]]
    print("told vllm", *told)
    return code
