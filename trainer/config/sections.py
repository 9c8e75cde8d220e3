"""RunConfig: what a recipe says, typed, and refused before anything heavy is imported."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from data.config import MOST, DataConfig, Section
from trainer.config.threshold import ThresholdRule

OWN_METHODS = (
    "full", "lora", "qlora", "ia3", "ptuning", "adapter_h", "adapter_p", "parallel"
)  # fmt: skip
_LARGEST = 1e9  # of factors, whose products with weights have to stay finite in fp32
Positive = Annotated[int, Field(ge=1, le=MOST)]
Share = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0, le=_LARGEST)]
AboveZero = Annotated[float, Field(gt=0, le=_LARGEST)]


class RunSection(Section):
    """Where the run lives and how it starts."""

    output_dir: str = Field(description="run folder: config, log, checkpoints, model, report")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="weights, order, dropout")
    resume: str = Field(
        "auto",
        description="auto continues from the newest checkpoint that verifies; never; or a path",
    )
    accept_changes: bool = Field(
        False, description="continue although the recipe differs from the checkpoint's"
    )


class ModelSection(Section):
    """The base model."""

    path: str | None = Field(None, description="folder with config.json and safetensors weights")
    config: str | None = Field(None, description="config.json: random weights from run.seed")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the frozen base; auto follows engine.precision"
    )
    attention: Literal[
        "auto", "eager", "sdpa", "segment_sdpa", "flash_attention_2", "torch_varlen",
        "torch_efficient",
    ] = Field("auto", description="back end; the choice and its reason are printed")  # fmt: skip
    pooling: Literal["auto", "last", "first", "mean"] = Field(
        "auto",
        description="state of a function that classification scores; auto: as transformers' class"
        " of the base does, the last token of a decoder; else of its last or first token, or their"
        " mean",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass"
    )
    quantize_cache: str | None = Field(
        None, description="folder that keeps a qlora base quantised; null: quantise at every start"
    )

    @property
    def config_file(self) -> Path:
        """The base's config.json."""
        source = Path(self.path or self.config or "")
        return source / "config.json" if source.is_dir() else source


class TaskSection(Section):
    """What the model learns."""

    name: Literal["classification", "instruction", "causal_lm"] = Field(
        "classification",
        description="classification: vulnerable or not, or other classes; instruction: answers;"
        " causal_lm: text",
    )


class TuningSection(Section):
    """Which parameters are trained."""

    method: str = Field(
        "lora",
        description="full trains the base; qlora is lora on a quantised base;"
        " adapter_h, adapter_p, parallel: bottleneck adapters of Houlsby, Pfeiffer, He; ia3;"
        " ptuning; or any method of PEFT by its name, e.g. oft, vera, hra",
    )
    peft: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of PEFT's config of the method, e.g. {oft_block_size: 32}; of lora"
        " what no other key says, e.g. {rank_pattern: {mlp.c_proj: 16}}",
    )
    variant: Literal["plain", "rslora", "dora", "llm_adapters"] = Field(
        "plain",
        description="of lora: rslora, dora; of bottleneck adapters, which start as identity:"
        " llm_adapters draws both matrices from N(0, 0.02)",
    )
    adapter_size: Positive | None = Field(
        None,
        description="inner width of bottleneck adapters (null: 256), virtual tokens of ptuning"
        " (null: 30)",
    )
    quant_type: Literal["auto", "nf4", "fp4", "int8"] = Field(
        "auto", description="of the frozen base, by bitsandbytes; auto: nf4 for qlora, else none"
    )
    double_quant: bool = Field(True, description="quantise the scales of nf4 and fp4 too")
    init_from: str | None = Field(
        None, description="run, or its model/ or a copy of that, whose weights are trained further"
    )
    lora_r: Positive = Field(8, description="rank")
    lora_alpha: AboveZero = Field(16.0, description="scale is alpha / r")
    lora_dropout: Share = Field(
        0.05, description="on the input of the adapters, bottleneck ones too"
    )
    target_modules: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = Field(
        "auto",
        description="linear layers by the end of their name, e.g. [c_attn, mlp.c_proj], for lora"
        " also stacked experts, e.g. [experts.down_proj]; auto: those of the method in this"
        " architecture, for lora all that it can train but the head",
    )
    lora_backend: Literal["auto", "fused", "peft"] = Field(
        "auto", description="of the adapted layers; the choice and its reason are printed"
    )
    modules_to_save: list[str] = Field(
        default_factory=list, description="modules trained whole beside the adapters, e.g. [wte]"
    )

    @property
    def base_quant_type(self) -> Literal["nf4", "fp4", "int8"] | None:
        """Type of the quantised base; None: the base is not quantised."""
        if self.quant_type != "auto":
            return self.quant_type
        return "nf4" if self.method == "qlora" else None


def _weights(alpha: Any) -> Any:
    if alpha is None or (isinstance(alpha, list) and len(alpha) > 1):
        return alpha
    raise ValueError(
        "give at least 2 weights, one a class: [not vulnerable, vulnerable]; RetinaNet's one number"
        " a is [1 - a, a]"
    )


class LossSection(Section):
    """Focal loss over labelled functions or tokens."""

    gamma: NotNegative = Field(0.0, description="focusing; 0 is cross-entropy")
    alpha: Annotated[list[NotNegative], BeforeValidator(_weights)] | None = Field(
        None, description="weight of each class by its id: [not vulnerable, vulnerable]"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: inverse share of the class in training; or alpha"
    )
    group_weights: dict[str, NotNegative] = Field(
        default_factory=dict, description="weight by the record's status, 1 where not named"
    )
    backend: Literal["auto", "triton", "torch", "reference"] = Field(
        "auto", description="of a language model's loss; the choice and its reason are printed"
    )


class OptimSection(Section):
    """Updates. Batches: global in examples or rows, micro in rows; accumulation follows."""

    optimizer: Literal[
        "adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "lion", "lion_8bit", "sgd",
        "muon", "adafactor",
    ] = Field(
        "adamw",
        description="8bit, paged and lion are bitsandbytes': moments in 8 bit, or in host memory;"
        " muon and adafactor update whole matrices, which ZeRO 0 alone has",
    )  # fmt: skip
    lr: AboveZero = Field(2e-4, description="peak learning rate")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="after warm-up; wsd stays at lr, then falls over decay_ratio"
    )
    min_lr_ratio: Share = Field(0.0, description="share of lr to which a schedule falls")
    decay_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="share of the updates in which wsd falls, at the end"
    )
    warmup_steps: Annotated[int, Field(ge=0, le=MOST)] = Field(
        0, description="linear from lr / warmup_steps"
    )
    warmup_ratio: Share | None = Field(
        None, description="warm-up as a share of all updates, instead of warmup_steps"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="rate of a block as a share of the next one's, e.g. 0.8; head at lr"
    )
    weight_decay: NotNegative = Field(
        0.0, description="not on biases and norms; times the rate, of sgd added to the gradient"
    )
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.999],
        description="decay of AdamW's two moments, 0.9 and 0.99 of lion's; sgd: momentum first",
    )
    eps: AboveZero = Field(1e-8, description="AdamW; added to the root of the second moment")
    lora_plus_ratio: Annotated[float, Field(ge=1, le=_LARGEST)] = Field(
        1.0, description="LoRA+: rate of LoRA's B matrices as a multiple of lr, e.g. 16"
    )
    max_grad_norm: NotNegative = Field(1.0, description="global clipping; 0 is off")
    epochs: Positive | None = Field(None, description="passes over the data; or max_steps")
    max_steps: Positive | None = Field(None, description="optimizer steps; or epochs")
    micro_batch_size: Literal["auto"] | Positive = Field(
        1, description="rows of one forward pass on one GPU; auto: the most whose memory fits"
    )
    global_batch_size: Positive = Field(32, description="optimizer step, in batch_unit")
    batch_unit: Literal["examples", "rows"] = Field(
        "examples", description="unit of global_batch_size; packing then leaves the steps alone"
    )

    @property
    def micro_rows(self) -> int:
        """Rows of a micro-batch; 1 where auto is not settled."""
        return 1 if self.micro_batch_size == "auto" else self.micro_batch_size

    @model_validator(mode="before")
    @classmethod
    def _betas_of_lion(cls, given: Any) -> Any:
        """Those of its paper, where the recipe says nothing."""
        if isinstance(given, dict) and str(given.get("optimizer")).startswith("lion"):
            return {"betas": [0.9, 0.99]} | given
        return given


class EngineSection(Section):
    """DeepSpeed."""

    preset: str = Field(
        "auto", description="a file of ds_configs/ without .json; auto: by GPU and planned memory"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of training; auto: bf16 on sm80+, fp16 on older GPUs, fp32 on CPU"
    )
    timeout_seconds: Positive = Field(1800, description="of every collective")
    join_seconds: Positive = Field(60, description="in which all ranks have to start")


def _readable_threshold(value: str | float) -> str | float:
    ThresholdRule.of(value)
    return value


class EvalSection(Section):
    """Validation during training, test at the end."""

    interval: Literal["epoch", "never"] | Positive = Field(
        "epoch", description="epoch, never, or every N steps"
    )
    before: Literal["all", "none"] | Positive = Field(
        64,
        description="what a language model scores before the first step, for the report to compare"
        " with: N records of valid and of test, always the same ones; all; or none",
    )
    window_score: Literal["max", "mean"] = Field(
        "max", description="of a function cut into windows"
    )
    metric: str = Field(
        "auto",
        description="measure on validation that chooses the best step, e.g. f1 or loss; auto:"
        " roc_auc, with more than two classes mean_ap, of a language model loss",
    )
    patience: Positive | None = Field(
        None, description="stop after so many validations without a better one; null: never"
    )
    threshold: Annotated[str | float, AfterValidator(_readable_threshold)] = Field(
        "best_f1",
        description="of two classes, chosen on validation: best_f1, fpr=0.005, recall=0.9,"
        " precision=0.5, cost=10:1 (of a missed one in false alarms), or a number; of several"
        " classes at once the same for each",
    )
    base_rate: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="share of vulnerable functions where the model will be used, for the report",
    )
    prompts: list[str | list[dict[str, Any]]] = Field(
        default_factory=list,
        description="what a language model answers at every validation: texts, or conversations as"
        " lists of messages; default: the first questions, or beginnings, of the validation split",
    )
    max_new_tokens: Positive = Field(64, description="of an answer to a prompt")
    temperature: NotNegative = Field(
        0.0,
        description="of answers to prompts; 0: the most likely token, else one drawn by run.seed",
    )


class LogSection(Section):
    """What a run shows."""

    interval: Positive = Field(10, description="steps between log lines; those steps sync")
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"],
        description="where curves go beside log.jsonl: tensorboard, under <output_dir>; wandb and"
        " mlflow, offline unless WANDB_MODE or MLFLOW_TRACKING_URI say otherwise; [] for none",
    )
    progress: bool = Field(True, description="live bar on rank 0")


class SaveSection(Section):
    """Checkpoints."""

    interval: Literal["epoch"] | Positive = Field("epoch", description="epoch or every N steps")
    keep: Annotated[int, Field(ge=2, le=MOST)] = Field(
        2, description="newest kept, besides the best"
    )


class ReplicationSection(Section):
    """Only for comparing with published work that did the same."""

    detach_modulator: bool = Field(
        False, description="no gradient flows through the modulator of the focal loss"
    )
    compat_population: bool = Field(
        False, description="dropped functions are left out of the metrics, not scored by the prior"
    )


def plain(value: Any) -> str | bool | int | float:
    """A value as trackers take it."""
    if isinstance(value, Section):
        value = value.model_dump(mode="json")
    return value if isinstance(value, str | bool | int | float) else str(value)


class RunConfig(Section):
    """A whole recipe."""

    run: RunSection
    model: ModelSection
    data: DataConfig
    task: TaskSection = TaskSection()
    tuning: TuningSection = TuningSection()
    loss: LossSection = LossSection()
    optim: OptimSection = OptimSection()
    engine: EngineSection = EngineSection()
    eval: EvalSection = EvalSection()
    log: LogSection = LogSection()
    save: SaveSection = SaveSection()
    replication: ReplicationSection = ReplicationSection()

    @property
    def output_dir(self) -> Path:
        """The run folder."""
        return Path(self.run.output_dir)

    @property
    def is_language(self) -> bool:
        """Whether the task learns tokens, not classes."""
        return self.task.name != "classification"

    @property
    def base_dtype(self) -> str:
        """Dtype of the base's weights, or of the products of a quantised base."""
        return self.engine.precision if self.model.dtype == "auto" else self.model.dtype

    def changed(self, section: str, **values: Any) -> "RunConfig":
        """The recipe with keys of one section changed."""
        block = getattr(self, section).model_copy(update=values)
        return self.model_copy(update={section: block})

    @property
    def model_folder(self) -> Path:
        """Folder of the base model's config.json."""
        return self.model.config_file.parent

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer.json that gives stock's ids.

        Raises:
            TokenizerError: The folder that the recipe names cannot give one.
        """
        from data.prepared.stock_tokenizer import stock_folder  # reads and writes files

        named = Path(self.data.tokenizer) if self.data.tokenizer else self.model_folder
        return stock_folder(self.data, named)

    def flat(self) -> dict[str, Any]:
        """Every key that has a value, as section.key."""
        return {
            f"{section}.{key}": plain(value)
            for section, block in self.to_json().items()
            for key, value in block.items()
            if value is not None
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values, every default filled in."""
        return self.model_dump(mode="json")


def default_of(section: str, key: str) -> Any:
    """What a key is where a recipe says nothing of it; None where it has to."""
    fields: Any = RunConfig.model_fields[section].annotation
    info = fields.model_fields[key]
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    return default.model_dump(mode="json") if isinstance(default, BaseModel) else default
