"""Recipe file and command line -> RunConfig; every mistake is named with what is allowed."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data.config import Weighted
from data.errors import parsing
from data.readers.reading import quote
from trainer.config.capabilities import STACK_LIMITS, refusals
from trainer.config.methods import BOTTLENECKS, HEAD, LORA, PROMPTS, WHOLE, adapter_size
from trainer.config.peft_methods import peft_faults
from trainer.config.preset import ROOT, load_preset
from trainer.config.renamed import is_saved, older_key_message, with_current_keys
from trainer.config.sections import RunConfig, default_of
from trainer.config.strict_yaml import read_yaml, read_yaml_file
from trainer.errors import ConfigError

_CAUSAL_LM = {"long_functions": "window", "supervise": "all"}  # defaults: text is learned whole
_VARIANTS = {  # tuning.variant: the methods it belongs to
    "rslora": ("lora", "qlora"),
    "dora": ("lora", "qlora"),
    "llm_adapters": BOTTLENECKS,
}
_PATH_KEYS = (
    *(("data", name) for name in ("path", "train", "valid", "test", "functions")),
    *(("data", name) for name in ("tokenizer", "cache_dir")),
    *(("model", name) for name in ("path", "config", "quantize_cache")),
    ("tuning", "init_from"),
    ("run", "output_dir"), ("run", "resume"),
)  # fmt: skip
DATA_PATHS = tuple(".".join(key) for key in _PATH_KEYS if key[0] == "data")
_PATH = "name a file or folder; ./~name for one that begins with a tilde"
_NAME = 80  # characters of a key in a message
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")  # OWNER/NAME, or NAME alone
_WORDS = (("resume", "auto"), ("resume", "never"))  # what else a path key may hold
_OF_FUNCTIONS = {
    "model": ("pooling",),
    "data": (
        "normalize_whitespace",
        "sampling",
        "leak_groups",
        "functions",
        "path_pattern",
        "text_pattern",
        "target",
        "min_class_size",
    ),
    "loss": ("alpha", "class_weights", "group_weights"),
    "eval": ("window_score", "threshold", "base_rate"),
    "replication": ("compat_population",),
}
_OF_LANGUAGE = {
    "data": ("records", "template", "supervise", "isolate", "order"),
    "eval": ("prompts", "max_new_tokens", "temperature"),
}


def load_run_config(recipe: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, apply `section.key=value` overrides, check everything that needs no model.

    Relative paths in a recipe start at the repository, those on the command line at the current
    folder; the result holds absolute paths.

    Raises:
        ConfigError: With every mistake found, one per line.
    """
    values = read_yaml_file(recipe)
    if not isinstance(values, dict):
        raise ConfigError(f"{recipe}: a recipe holds sections such as run, model, data")
    values = _absolute_paths(values, ROOT)
    if is_saved(recipe):
        values = with_current_keys(values)
    return config_of(values, overrides, recipe)


def config_of(sections: Mapping[str, Any], overrides: Sequence[str], source: Path) -> RunConfig:
    """The sections of a recipe, whose paths are absolute, with overrides; checked.

    Args:
        source: The file that holds them.

    Raises:
        ConfigError: As load_run_config.
    """
    values = {name: dict(v) if isinstance(v, dict) else v for name, v in sections.items()}
    given = [_parse_override(text) for text in overrides]
    for section, key, value in given:
        block = values.setdefault(section, {})
        if not isinstance(block, dict):
            raise ConfigError(f"{source}: section {section!r} must hold keys, found {quote(block)}")
        mapping, _, inner = key.partition(".")
        if inner and _is_mapping(section, mapping):  # as tuning.peft and data.fields
            key, before = mapping, block.get(mapping)
            value = {**(before if isinstance(before, dict) else {}), inner: value}
        changed = _absolute_paths({section: {key: value}}, Path.cwd())
        block.update(changed[section])
    _let_the_command_line_choose(values, given)
    with parsing(f"{source} cannot be understood", ConfigError, "correct its values"):
        config = _validated(values)
    if config.task.name == "causal_lm":
        unset = {k: v for k, v in _CAUSAL_LM.items() if k not in config.data.model_fields_set}
        config = config.changed("data", **unset)
    cross_check(config)
    return config


def _is_mapping(section: str, key: str) -> bool:
    sections: Any = RunConfig.model_fields
    known = getattr(sections[section].annotation, "model_fields", {}) if section in sections else {}
    return key in known and "dict[" in str(known[key].annotation)


def _let_the_command_line_choose(
    values: dict[str, Any], given: Sequence[tuple[str, str, Any]]
) -> None:
    """Of the two sources of a model, the one given beside a recipe takes the place of the other."""
    sources = [key for section, key, value in given if section == "model" and value is not None]
    for one, other in (("path", "config"), ("config", "path")):
        if one in sources and other not in sources:
            values["model"][other] = None


def cross_check(config: RunConfig) -> None:
    """Refuse what each key allows by itself and the whole does not.

    Raises:
        ConfigError: With every combination found.
    """
    checks = (
        _source_faults, _data_faults, _optim_faults, _precision_faults, _tuning_faults,
        _whole_faults, _task_faults,
    )  # fmt: skip
    if faults := [fault for check in checks for fault in check(config)]:
        raise ConfigError("\n".join(faults))


def without_paths(config: RunConfig) -> dict[str, Any]:
    """A recipe as plain values, without the keys that name places of one machine."""
    values = config.to_json()
    for section, key in _PATH_KEYS:
        del values[section][key]
    return values


def _parse_override(text: str) -> tuple[str, str, Any]:
    name, equals, raw = text.partition("=")
    section, dot, key = name.partition(".")
    if not equals or not dot or not key:
        raise ConfigError(
            f"{text[:_NAME]!r}: an override reads section.key=value, e.g. optim.lr=1e-4"
        )
    return section, key, read_yaml(raw, f"{name}, on the command line")


def _absolute_paths(values: dict[str, Any], base: Path) -> dict[str, Any]:
    changed = {
        key: dict(block) if isinstance(block, dict) else block for key, block in values.items()
    }
    for section, key in _PATH_KEYS:
        block = changed.get(section)
        if not isinstance(block, dict) or key not in block:
            continue
        value = block[key]
        if isinstance(value, list):  # data has them
            block[key] = [_absolute(each, f"{section}.{key}", base) for each in value]
        elif (key, value) not in _WORDS:
            block[key] = _absolute(value, f"{section}.{key}", base)
    return changed


def _absolute(value: Any, name: str, base: Path) -> Any:
    """A path from its base on, also of files with a weight; what is not text is left as it is."""
    if isinstance(value, dict):
        return {k: _absolute(v, name, base) if k == "path" else v for k, v in value.items()}
    if not isinstance(value, str):
        return value
    with parsing(f"{name}: {quote(value)} is not a path", ConfigError, _PATH):
        if not value.strip():  # it would be the folder that all paths start from
            raise ValueError("it is empty")
        path = (base / Path(value).expanduser()).resolve()
        path.exists()  # it fails for a name too long, or below a file
    return str(path)


def _validated(values: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from error


def _explain(error: ValidationError) -> list[str]:
    lines: list[str] = []
    for fault in error.errors():
        name = ".".join(str(part) for part in fault["loc"][:2])  # deeper parts name union members
        if fault["type"] == "extra_forbidden":
            unknown = f"unknown key {name[:_NAME]}{_nearest_key(fault['loc'])}"
            lines.append(older_key_message(name) or unknown)
        elif fault["type"] == "missing":
            lines.append(f"{name} is required; set it in the recipe or on the command line")
        else:
            lines.append(f"{name}: {fault['msg']}, found {quote(fault['input'])}")
    return lines


def _nearest_key(loc: tuple[int | str, ...]) -> str:
    fields: Mapping[str, Any] = RunConfig.model_fields
    for part in loc[:-1]:
        fields = getattr(fields[str(part)].annotation, "model_fields", fields)
    close = difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; allowed: {sorted(fields)}"


def _source_faults(config: RunConfig) -> Iterator[str]:
    if (config.model.path is None) == (config.model.config is None):
        yield "model: set exactly one of path (weights) and config (random weights)"
    named = {
        "model.path": config.model.path, "model.config": config.model.config,
        "data.tokenizer": config.data.tokenizer,
    }  # fmt: skip
    for key, value in named.items():
        if value is not None and not Path(value).exists():
            yield f"{key}: {value} does not exist{_download_hint(key, Path(value))}"
    if config.model.path is not None and Path(config.model.path).is_file():
        yield f"model.path: {config.model.path} is a file; give the folder of the base model"
    output = config.output_dir
    paths = config.data.path if isinstance(config.data.path, list) else [config.data.path]
    inputs = (*paths, config.model.path, config.model.config, config.data.tokenizer)
    if any(source is not None and output == Path(source) for source in inputs):
        yield f"run.output_dir {output} is the dataset's or the model's folder; choose another"


def _download_hint(key: str, path: Path) -> str:
    """What to do where a path may be the id of a model on a hub, such as Qwen/Qwen2.5-Coder-0.5B.

    Relative paths are absolute by now, so an id stands below the folder it was taken from.
    """
    bases = [base for base in (Path.cwd(), ROOT) if path.is_relative_to(base)]
    ids = [i for i in (str(path.relative_to(base)) for base in bases) if _HUB_ID.fullmatch(i)]
    if key == "model.config" or not ids:
        return ""
    given = ids[0]
    return (
        f"; {given} looks like the id of a model on a hub, and ids are not looked up: download it"
        f" with `hf download {given} --local-dir FOLDER` and set {key}=FOLDER"
    )


def _data_faults(config: RunConfig) -> Iterator[str]:
    data, loss = config.data, config.loss
    if data.window_overlap >= data.seq_length - 1:
        yield (
            f"data.window_overlap {data.window_overlap} leaves windows of data.seq_length"
            f" {data.seq_length} no new token; take at most {data.seq_length - 2}"
        )
    if data.window_overlap and data.long_functions != "window":
        yield (
            f"data.window_overlap {data.window_overlap} is for data.long_functions=window, found"
            f" {data.long_functions}; set one of them"
        )
    if data.sampling == "balanced" and any(isinstance(each, Weighted) for each in data.train or ""):
        yield "data.sampling=balanced and the weights of data.train both repeat functions; take one"
    if data.min_class_size > 1 and data.target == "label" and data.labels != "auto":
        yield (
            f"data.min_class_size {data.min_class_size} merges classes that are not named, and"
            " these are; set data.labels=auto or data.target=cwe, or remove it"
        )
    weighing = ["loss.alpha"] if loss.alpha is not None else []
    weighing += ["loss.class_weights"] if loss.class_weights == "balanced" else []
    weighing += ["data.sampling"] if data.sampling == "balanced" else []
    if len(weighing) > 1:
        yield (
            f"{' and '.join(weighing)} would each weigh the classes, once more than meant; take one"
        )


_ADAMW = ("adamw", "paged_adamw", "muon")
_READ_BY = {"betas": (*_ADAMW, "lion", "sgd"), "eps": _ADAMW}  # optim.optimizer


def _optim_faults(config: RunConfig) -> Iterator[str]:
    optim = config.optim
    if (optim.epochs is None) == (optim.max_steps is None):
        yield "optim: set exactly one of epochs and max_steps"
    if optim.warmup_ratio is not None and optim.warmup_steps:
        yield "optim: set one of warmup_steps and warmup_ratio"
    if optim.schedule == "constant" and optim.min_lr_ratio:
        yield "optim.min_lr_ratio with optim.schedule=constant, which does not fall; remove it"
    if optim.schedule != "wsd" and optim.decay_ratio != default_of("optim", "decay_ratio"):
        yield "optim.decay_ratio is of optim.schedule=wsd alone; remove it"
    for key, readers in _READ_BY.items():
        usual = default_of("optim", key)
        if getattr(optim, key) != usual and optim.optimizer.partition("_8bit")[0] not in readers:
            yield f"optim.{key} is not read by optim.optimizer={optim.optimizer}; remove it"
    if optim.lora_plus_ratio != 1 and config.tuning.method not in LORA:
        yield (
            f"optim.lora_plus_ratio {optim.lora_plus_ratio} is for the B matrices of lora and"
            f" qlora, not of tuning.method {config.tuning.method}; remove it"
        )
    if optim.max_steps is not None and optim.warmup_steps > optim.max_steps:
        yield (
            f"optim.warmup_steps {optim.warmup_steps} is above optim.max_steps {optim.max_steps}"
        )


def _precision_faults(config: RunConfig) -> Iterator[str]:
    precision, dtype = config.engine.precision, config.model.dtype
    is_whole = config.optim.optimizer in WHOLE and precision in ("auto", "fp32")
    of_auto = "cpu_zero0" if is_whole else "cpu_zero1"  # its stage
    preset = of_auto if config.engine.preset == "auto" else config.engine.preset
    yield from refusals(STACK_LIMITS, config, load_preset(preset))
    frozen_in_16_bit = precision == "fp32" and dtype in ("bf16", "fp16")
    if frozen_in_16_bit and config.tuning.modules_to_save:
        yield (
            f"tuning.modules_to_save {config.tuning.modules_to_save} would be fp32 inside a {dtype}"
            " base; take model.dtype=auto, or train adapters alone"
        )
    if dtype not in ("auto", precision) and not frozen_in_16_bit:
        yield (
            f"model.dtype {dtype} with engine.precision {precision}: take model.dtype=auto, or"
            " engine.precision=fp32 for fp32 adapters on a 16-bit frozen base"
        )


def _tuning_faults(config: RunConfig) -> Iterator[str]:
    tuning, method = config.tuning, config.tuning.method
    if config.model.quantize_cache is not None and tuning.base_quant_type is None:
        yield (
            f"model.quantize_cache with tuning.method {method}: nothing is quantised;"
            " take tuning.method=qlora or give tuning.quant_type, or remove it"
        )
    yield from peft_faults(tuning)
    if method not in _VARIANTS.get(tuning.variant, (method,)):
        yield (
            f"tuning.variant {tuning.variant} is one of {', '.join(_VARIANTS[tuning.variant])}, not"
            f" of tuning.method {method}; take tuning.variant=plain"
        )
    if tuning.adapter_size is not None and not adapter_size(tuning):
        yield (
            f"tuning.adapter_size {tuning.adapter_size} means nothing to tuning.method {method};"
            " remove it (lora has tuning.lora_r)"
        )
    if method in ("full", "ptuning", *PROMPTS) and tuning.target_modules != "auto":
        yield (
            f"tuning.target_modules {tuning.target_modules} with tuning.method {method}, which"
            " adapts no layer; take tuning.target_modules=auto"
        )


def _whole_faults(config: RunConfig) -> Iterator[str]:
    """Parameters that are trained whole, beside adapters or instead of them."""
    tuning = config.tuning
    if tuning.method == "full" and tuning.modules_to_save:
        yield (
            f"tuning.modules_to_save {tuning.modules_to_save} with tuning.method full, which trains"
            " everything; remove it"
        )
    is_16_bit = config.model.dtype in ("bf16", "fp16")
    if tuning.method == "full" and config.engine.precision == "fp32" and is_16_bit:
        yield (
            f"model.dtype {config.model.dtype} with tuning.method full: nothing is frozen; take"
            " model.dtype=auto"
        )
    if tuning.method == "full" and tuning.base_quant_type is not None:
        yield (
            f"tuning.quant_type {tuning.quant_type} with tuning.method full: quantised weights are"
            " not trained; take tuning.quant_type=auto, or tuning.method=qlora"
        )
    if HEAD in tuning.target_modules and tuning.init_from is not None:
        yield (
            f"tuning.init_from with {HEAD!r} among tuning.target_modules: a checkpoint holds no"
            " frozen head to continue from; leave the head out, it is then trained whole"
        )


def _task_faults(config: RunConfig) -> Iterator[str]:
    """Keys that the task does not read, and combinations that would say nothing."""
    foreign = _OF_FUNCTIONS if config.is_language else _OF_LANGUAGE
    for section, keys in foreign.items():
        block = getattr(config, section)
        for key in keys:
            if getattr(block, key) != default_of(section, key):
                yield (
                    f"{section}.{key}={getattr(block, key)!r}: task.name {config.task.name} does"
                    " not read it; remove it"
                )
    if config.eval.patience is not None and config.eval.interval == "never":
        yield (
            f"eval.patience {config.eval.patience} counts validations, and eval.interval=never has"
            " none before the end; set eval.interval=epoch or a number of steps"
        )
    if not config.data.isolate and not config.data.packing:
        yield "data.isolate=false says how a packed row is read; set data.packing=true"
