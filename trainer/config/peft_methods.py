"""Any method of PEFT by its name, with arguments that PEFT's own config class checks.

PEFT is imported only for a recipe that names one of its methods.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from data.config import MOST
from trainer.config.methods import LORA, START_ARGUMENTS, start_of
from trainer.config.sections import OWN_METHODS, TuningSection

if TYPE_CHECKING:
    from peft import PeftConfig

_KEY_OF = {"target_modules": "tuning.target_modules", "modules_to_save": "tuning.modules_to_save"}
_KEY_OF_LORA = {  # what a recipe says of LoRA elsewhere -> where
    "r": "tuning.lora_r",
    "lora_alpha": "tuning.lora_alpha",
    "lora_dropout": "tuning.lora_dropout",
    "use_rslora": "tuning.variant=rslora",
    "use_dora": "tuning.variant=dora",
}
_STARTS = (
    "true, false, gaussian, orthogonal, pissa, pissa_niter_16 (or another number), olora, corda,"
    " lora_ga, eva, loftq"
)
_OWNED = (
    "task_type", "peft_type", "auto_mapping", "inference_mode", "fan_in_fan_out",
    "base_model_name_or_path", "revision", "peft_version", "target_parameters", "save_projection",
    "num_attention_heads", "num_layers", "num_transformer_submodules", "token_dim",
)  # fmt: skip
_REFUSED = {  # they load other files, train what the adapter does not hold, or do nothing
    "alora_invocation_tokens": "only a part of a record would be adapted",
    "encoder_hidden_size": "the adapter holds no projection",
    "bias": "name what is trained whole in tuning.modules_to_save",
    "layer_replication": "it makes another base",
    "num_frozen_tokens": "the adapter holds what is trained",
    "megatron_core": "it imports a module by name",
    "prefix_projection": "the adapter holds no projection",
    "prompt_tuning_init": "it loads a tokenizer by name",
    "prompt_tuning_init_text": "it loads a tokenizer by name",
    "tokenizer_kwargs": "it loads a tokenizer by name",
    "tokenizer_name_or_path": "it loads a tokenizer by name",
    "sample_at_inference": "the same function would get another score each time",
    "save_only_topk_weights": "such an adapter cannot be trained further",
    "use_asa": "its ranks follow a schedule that PEFT's own trainer calls at every step",
    "use_bdlora": "it is a config of its own",
    "use_qalora": "it does nothing on a base that is not GPTQ's",
}
# PEFT's type of the first has pissa_niter_[number of iters], literally.
_CHECKED = {"init_lora_weights", *START_ARGUMENTS}
_SIZES = ("r", "alpha", "num_virtual_tokens", "rank_pattern")  # above 0
LEFT_OUT = {
    "adalora": "its ranks follow a schedule that PEFT's own trainer calls at every step",
    "cpt": "it needs the token ids of a prompt in every record",
    "multitask_prompt_tuning": "it needs the id of a task in every record",
    "poly": "it needs the id of a task in every record",
    "shadow": "its second model runs beside the whole model, not beside its layers",
    "xlora": "it mixes adapters that were trained before",
}


def peft_class(method: str) -> "type[PeftConfig] | None":
    """PEFT's config class of a method that is not one of ours; None where PEFT has none."""
    return _classes().get(method)


def argument_names(method: str) -> set[str]:
    """Arguments of a method's config class; none where PEFT has none."""
    kind = peft_class(method)
    return {field.name for field in dataclasses.fields(kind)} if kind else set()


def peft_names() -> list[str]:
    """Every method of PEFT that can be named."""
    return sorted(_classes().keys() - LEFT_OUT.keys() - {"p_tuning"})


def _classes() -> "dict[str, type[PeftConfig]]":
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {kind.value.lower(): one for kind, one in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def peft_faults(tuning: TuningSection) -> Iterator[str]:
    """What is wrong with a method's name or with tuning.peft, each with what is right."""
    method, given = tuning.method, tuning.peft
    if method in OWN_METHODS and not given:
        return
    if method in LEFT_OUT:
        yield f"tuning.method {method} is left out: {LEFT_OUT[method]}; {_others(method)}"
        return
    kind = peft_class("lora" if method in LORA else method)
    if method in OWN_METHODS and method not in LORA:
        yield f"tuning.peft {sorted(given)} is not read by tuning.method {method}; remove it"
        return
    if kind is None or method == "p_tuning":
        yield f"tuning.method {method!r} is not known; {_others(method)}"
        return
    fields = {field.name for field in dataclasses.fields(kind)}
    odd = {name: _remedy(name, fields, tuning) for name in given}
    yield from (f"tuning.peft.{name}: {remedy}" for name, remedy in odd.items() if remedy)
    if method == "trainable_tokens" and not given.get("token_indices"):
        yield "tuning.peft: give token_indices, the ids of the tokens to train, e.g. [3, 17]"
    elif not any(odd.values()):
        yield from _value_faults(kind, {key: given[key] for key in given if key not in _CHECKED})


def _value_faults(kind: "type[PeftConfig]", given: Mapping[str, Any]) -> Iterator[str]:
    """Values of another type than PEFT's config says (strictly: it takes them as they are)."""
    from pydantic import TypeAdapter, ValidationError

    types, is_sound = get_type_hints(kind), True
    for name, value in given.items():
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
            wrong = _number_fault(name, value)
        except ValidationError as error:
            wrong = "; or ".join(dict.fromkeys(fault["msg"] for fault in error.errors()))
        if wrong:
            is_sound = False
            yield f"tuning.peft.{name}: {wrong}, found {str(value)[:80]!r}"
    if is_sound:
        try:
            kind(**given)
        except Exception as error:  # what the class itself says
            yield f"tuning.peft: PEFT refuses it: {str(error)[:300]}"


def _number_fault(name: str, value: Any) -> str:
    """What is wrong with a number, or with one inside a list or mapping; "" where nothing is."""
    if isinstance(value, Mapping | list):
        inner = value.values() if isinstance(value, Mapping) else value
        return next(filter(None, (_number_fault(name, one) for one in inner)), "")
    if isinstance(value, int | float) and not abs(value) <= MOST:
        return f"a number must be finite and at most {MOST}"
    if not isinstance(value, int | float):
        return ""
    if name.endswith("token_indices") and value < 0:
        return "ids of tokens are 0 or more"
    return "must be above 0" if name in _SIZES and value <= 0 else ""


def _remedy(name: str, fields: set[str], tuning: TuningSection) -> str:
    """What to do about an argument; "" where it is one of the method's."""
    is_lora = tuning.method in LORA
    elsewhere = _KEY_OF | (_KEY_OF_LORA if is_lora else {})
    if name in elsewhere and name in fields:
        return f"set {elsewhere[name]} instead"
    if name in _OWNED:
        return "focaltune sets it; remove it"
    if is_lora and name in START_ARGUMENTS:
        return _config_fault(name, tuning)
    if name in _REFUSED or name.endswith("_config"):
        return f"not taken: {_REFUSED.get(name, 'it is a config of its own')}; remove it"
    if name == "init_lora_weights" and is_lora:
        return _start_fault(tuning)
    if name in fields:
        return ""
    known = {one for one in fields - {*_OWNED, *_REFUSED, *elsewhere} if "_config" not in one}
    same = [one for one in known if one.lower() == name.lower()]
    close = same or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    nearest = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(known))}"
    return f"PEFT's {tuning.method} has no such argument; {nearest}"


def start_configs(tuning: TuningSection) -> dict[str, Any]:
    """The config of tuning.peft's start, by its name in PEFT's LoraConfig; none where it has none.

    Raises:
        Exception: PEFT's class does not take a value.
    """
    name = f"{start_of(tuning)}_config"
    if name not in START_ARGUMENTS:
        return {}
    return {name: _start_class(name)(**tuning.peft.get(name, {}))}


def _start_class(name: str) -> Any:
    from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig

    return {
        "eva_config": EvaConfig,
        "corda_config": CordaConfig,
        "lora_ga_config": LoraGAConfig,
    }[name]


def _start_fault(tuning: TuningSection) -> str:
    """What is wrong with the way LoRA starts."""
    start, kind = tuning.peft["init_lora_weights"], start_of(tuning)
    if kind is None:
        if isinstance(start, bool) or start in ("gaussian", "orthogonal"):
            return ""
        why = "it freezes B, and a checkpoint holds what is trained"
        return f"{start!r}: {why if start == 'mica' else 'not known'}; allowed: {_STARTS}"
    if kind == "loftq" and tuning.base_quant_type is None:
        return "'loftq' begins with what quantising loses; take tuning.method=qlora, or pissa"
    if tuning.variant == "dora":
        return f"{start!r} with dora, which begins with all of the base; choose one"
    if kind == "eva" and isinstance(tuning.peft.get("exclude_modules"), str):
        return "'eva' adds layers to exclude_modules; give that as a list"
    if tuning.init_from is not None:
        return f"{start!r} with tuning.init_from, which has weights to begin with; remove one"
    return ""


def _config_fault(name: str, tuning: TuningSection) -> str:
    """What is wrong with a start's own config."""
    if name != f"{start_of(tuning)}_config":
        return f"it belongs to init_lora_weights={name.removesuffix('_config')}; remove it"
    allowed, given = START_ARGUMENTS[name], tuning.peft[name]
    odd = sorted(map(str, set(given) - set(allowed))) if isinstance(given, dict) else [str(given)]
    if odd:
        return f"not taken: {', '.join(odd)}; allowed: {', '.join(allowed)}"
    faults = _value_faults(_start_class(name), given)
    return "; ".join(fault.removeprefix("tuning.peft.") for fault in faults)


def _others(method: str) -> str:
    names = list(dict.fromkeys([*OWN_METHODS, *peft_names()]))
    close = difflib.get_close_matches(method.lower(), names, n=1, cutoff=0.5)
    nearest = f"did you mean {close[0]!r}? " if close else ""
    return f"{nearest}allowed: {', '.join(names)}"
