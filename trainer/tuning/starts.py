"""How LoRA begins, beside PEFT's usual draw: drawn once, kept in a file, read by every rank.

With a part of each weight: pissa (Meng et al. 2024), olora (Buyukakyuz 2024), corda (Yang et al.
2024) and lora_ga (Wang et al. 2024), all by PEFT, which takes that part out of the base; here the
base stays (tuning/fused_lora.py). Without: eva (Paischer et al. 2024), loftq (Li et al. 2023).
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.architectures.derived import is_conv1d
from trainer.config.methods import as_plain, start_of, takes_part_of_base, without_start
from trainer.config.peft_methods import start_configs
from trainer.config.sections import TuningSection
from trainer.errors import ModelError
from trainer.tuning import layers
from trainer.tuning.targets import choose_targets

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

_STATES = 1_024  # read at once by a principal component analysis
_LOW = 8  # times the components: a wider layer is analysed by drawing
_SEED = 0  # of decompositions that draw


@dataclass(frozen=True)
class Passes:
    """What a start may ask of the base: both run over the same records of the training split.

    Attributes:
        forward: Runs the base, one record a row and without padding.
        backward: The same, and adds the gradients of the task's loss.
        decoded: A layer's path -> weight (out, in) that the quantised base computes with; None
            where the layer is not quantised.
    """

    forward: Callable[[], None]
    backward: Callable[[], None]
    decoded: Callable[[str], Tensor | None]


def draw_start(base: "PreTrainedModel", tuning: TuningSection, passes: Passes) -> dict[str, Tensor]:
    """Path of a layer + ".A" (rank, in) or ".B" (out, rank), in fp32; the base is used up.

    Args:
        base: Not quantised, in evaluation mode, on the device on which it can run.
        tuning: Its tuning.peft names the start.
        passes: Over the base.

    Raises:
        ModelError: A layer has no such start.
    """
    from peft import LoraConfig
    from peft.tuners.lora.layer import LoraLayer

    start, takes_part = start_of(tuning), takes_part_of_base(tuning)
    targets = choose_targets(base, as_plain(tuning) if takes_part else tuning)
    if targets.parameters:
        raise ModelError(
            f"tuning.target_modules {targets.parameters}: init_lora_weights {start} knows linear"
            " layers alone; leave them out, or remove init_lora_weights"
        )
    configs = start_configs(tuning) if takes_part else {}
    settings = LoraConfig(
        r=tuning.lora_r,
        lora_alpha=tuning.lora_alpha,
        target_modules=targets.modules,
        use_rslora=tuning.variant == "rslora",
        fan_in_fan_out=any(is_conv1d(module) for module in base.modules()),
        init_lora_weights=tuning.peft["init_lora_weights"] if takes_part else True,
        **configs,
        **without_start(tuning),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Of the first layer, whose input no gradient needs; the hook counts all the same.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        torch.manual_seed(_SEED)
        if start == "corda":
            from peft.tuners.lora.corda import preprocess_corda

            preprocess_corda(base, settings, passes.forward)
        if start == "lora_ga":
            from peft.tuners.lora.loraga import preprocess_loraga

            preprocess_loraga(base, settings, passes.backward)
        model = layers.with_peft(base, settings)
    adapted = {
        path.removeprefix("base_model.model."): layer
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    if start == "eva":
        return _explained(adapted, start_configs(tuning)["eva_config"], passes.forward)
    if start == "loftq":
        return _lost(adapted, passes)
    tensors = {}
    for path, layer in adapted.items():
        tensors[f"{path}.A"] = layer.lora_A["default"].weight.detach().float()
        tensors[f"{path}.B"] = layer.lora_B["default"].weight.detach().float()
        _check_part(path, layer, settings)
    return tensors


def started(tuning: TuningSection, start: Mapping[str, Tensor]) -> TuningSection:
    """The tuning with the ranks that a start found; a layer of rank 0 is not adapted."""
    if start_of(tuning) != "eva":
        return tuning
    peft = without_start(tuning)
    ranks, alphas, without = {}, {}, list(peft.get("exclude_modules") or [])
    keeps_scale = start_configs(tuning)["eva_config"].adjust_scaling_factors
    for name, value in start.items():
        path, _, side = name.rpartition(".")
        if side == "B":
            continue
        usual = _of_pattern(peft.get("rank_pattern"), path, tuning.lora_r)
        alpha = _of_pattern(peft.get("alpha_pattern"), path, tuning.lora_alpha)
        ranks[path], alphas[path] = len(value), alpha * len(value) / usual if keeps_scale else alpha
        if not len(value):
            without.append(path)
    found = {"rank_pattern": ranks, "alpha_pattern": alphas, "exclude_modules": without}
    for path in without:
        ranks.pop(path, None), alphas.pop(path, None)
    return tuning.model_copy(update={"peft": peft | found})


def take_start(model: "PeftModel", start: Mapping[str, Tensor], *, is_part: bool) -> None:
    """Give fresh adapters their start; where it is a part of the base, their layers subtract it."""
    for name, value in start.items():
        path, _, side = name.rpartition(".")
        if not value.numel():
            continue
        layer: Any = model.get_submodule(f"base_model.model.{path}")
        weight = getattr(layer, f"lora_{side}")["default"].weight
        weight.data.copy_(value)
        if is_part:
            layer.register_buffer(f"start_{side}", weight.detach().clone(), persistent=False)


def _check_part(path: str, layer: Any, settings: "LoraConfig") -> None:
    """Refuse what PEFT gets wrong: olora of transposed layers, ranks above a layer's width."""
    rank, sides = layer.r["default"], (layer.in_features, layer.out_features)
    a, b = (getattr(layer, f"lora_{side}")["default"].weight for side in "AB")
    is_wrong = settings.init_lora_weights == "olora" and is_conv1d(layer.get_base_layer())
    if is_wrong or (tuple(a.shape), tuple(b.shape)) != ((rank, sides[0]), (sides[1], rank)):
        raise ModelError(
            f"tuning.peft init_lora_weights: {path} of {sides[0]} x {sides[1]} has no such part of"
            f" rank {rank}; lower the rank, or take pissa, as PEFT's olora does not know transposed"
            " layers (Conv1D)"
        )


def _of_pattern(pattern: Mapping[str, Any] | None, path: str, usual: Any) -> Any:
    from peft.utils.other import get_pattern_key

    return (pattern or {}).get(get_pattern_key(list(pattern or {}), path), usual)


def _lost(adapted: Mapping[str, Any], passes: Passes) -> dict[str, Tensor]:
    """The best approximation of what quantising took, W - Wq: s B A of the layer's rank."""
    tensors = {}
    for path, layer in adapted.items():
        if (decoded := passes.decoded(path)) is None:
            continue
        weight = layer.get_base_layer().weight.detach().float()
        weight = weight.T if is_conv1d(layer.get_base_layer()) else weight
        rest = weight - decoded.to(weight)
        left, values, right = torch.linalg.svd(rest, full_matrices=False)
        rank = layer.r["default"]
        roots = (values[:rank] / layer.scaling["default"]).sqrt()
        tensors[f"{path}.A"] = roots[:, None] * right[:rank]
        tensors[f"{path}.B"] = left[:, :rank] * roots
    return tensors


def _explained(
    adapted: Mapping[str, Any], wanted: Any, forward: Callable[[], None]
) -> dict[str, Tensor]:
    """Principal components of what each layer reads; ranks go where they explain most variance.

    The sum of ranks stays, none is above rho times its layer's (Paischer et al. 2024, section 3).
    """
    most = {
        path: min(round(layer.r["default"] * wanted.rho), layer.in_features, layer.out_features)
        for path, layer in adapted.items()
    }
    read = _components(adapted, most, forward)
    ratios = [
        (float(ratio), path)
        for path, found in read.items()
        for ratio in found.explained_variance_ratio_[: most[path]]
    ]
    budget = sum(layer.r["default"] for layer in adapted.values())
    kept = [path for _, path in sorted(ratios, key=lambda one: -one[0])[:budget]]
    tensors = {}
    for path, layer in adapted.items():
        rank = kept.count(path)
        parts = read[path].components_[:rank]
        if wanted.whiten:
            parts = parts / read[path].singular_values_[:rank].sqrt()[:, None]
        tensors[f"{path}.A"] = parts.float()
        tensors[f"{path}.B"] = parts.new_zeros(layer.out_features, rank).float()
    return tensors


@dataclass
class _Reader:
    """A principal component analysis of what a layer reads, as it comes."""

    analysis: Any
    waiting: list[Tensor] = field(default_factory=list)

    def add(self, states_ND: Tensor) -> None:
        """Take states; they are analysed a thousand at a time."""
        self.waiting.append(states_ND.float())
        if sum(map(len, self.waiting)) >= max(_STATES, self.analysis.n_components):
            self.read()

    def read(self) -> None:
        """Analyse what waits; too few states are left out."""
        states_ND = torch.cat(self.waiting) if self.waiting else torch.zeros(0, 1)
        self.waiting = []
        if len(states_ND) >= self.analysis.n_components:
            self.analysis.partial_fit(states_ND)


def _components(
    adapted: Mapping[str, Any], most: Mapping[str, int], forward: Callable[[], None]
) -> dict[str, Any]:
    """Path -> the analysis of what a layer reads; layers that read the same tensor share one."""
    from peft.utils.incremental_pca import IncrementalPCA

    readers: dict[str, _Reader] = {}
    same: dict[str, str] = {}
    last: list[Any] = ["", None]

    def hook_of(path: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, given: Any) -> None:
            if same.get(path, path) != path:
                return
            if given[0] is last[1]:
                same[path] = last[0]
                return
            last[:] = path, given[0]
            readers[path].add(given[0].detach().reshape(-1, given[0].shape[-1]))

        return hook

    handles = []
    for path, layer in adapted.items():
        count = min(max(most.values()), layer.in_features)
        is_low = _LOW * count <= layer.in_features
        analysis = IncrementalPCA(n_components=count, lowrank=is_low, lowrank_seed=_SEED)
        readers[path] = _Reader(analysis)
        handles.append(layer.register_forward_pre_hook(hook_of(path)))
    forward()
    for handle in handles:
        handle.remove()
    for path, reader in readers.items():
        if path not in same:
            reader.read()
    found = {path: readers[same.get(path, path)].analysis for path in adapted}
    for path, analysis in found.items():
        if not hasattr(analysis, "components_"):
            raise ModelError(
                f"tuning.peft init_lora_weights eva: {path} read fewer states of the training"
                f" split than {analysis.n_components}; lower the rank, or take pissa"
            )
    return found
