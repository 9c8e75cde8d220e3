"""Scores rows with stock transformers, PEFT or ONNX, alone: the fresh process of export.py.

python stock_scores.py ASKED ANSWER      two JSON files; nothing of focaltune is imported
"""

import gc
import json
import runpy
import sys
from pathlib import Path
from typing import Any

# Two fifths of the imports' time, as trainer/processes/imports.py says; no score needs them.
gc.disable()  # until the model is loaded
sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]

import torch  # noqa: E402
import transformers  # noqa: E402

BATCH = 4
_MOST_BYTES = 1_900_000_000  # that one file of protobuf holds


def tokenizer_of(asked: dict[str, Any]) -> tuple[Any, str]:
    """The tokenizer that AutoTokenizer takes; or, where that makes other tokens, tokenizer.json's.

    transformers has types whose class replaces rules of tokenizer.json, whatever the files say.
    The text says so; it is empty for AutoTokenizer's.
    """
    auto = transformers.AutoTokenizer.from_pretrained(asked["folder"])
    if all(
        auto(**_named(text), truncation=True).input_ids == ids
        for text, ids in zip(asked["texts"], asked["expected"], strict=True)
    ):
        return auto, ""
    plain = transformers.PreTrainedTokenizerFast.from_pretrained(asked["folder"])
    return plain, (
        f"load the tokenizer by PreTrainedTokenizerFast.from_pretrained: {type(auto).__name__},"
        " which AutoTokenizer takes for this type of model, makes other tokens"
    )


def scores_of_texts(asked: dict[str, Any], tokenizer: Any) -> list[list[float]]:
    """Probabilities of the classes of each text."""
    texts = asked["texts"]
    if asked["way"] == "pipeline":
        pipe = transformers.pipeline(
            "text-classification", model=asked["folder"], tokenizer=tokenizer, batch_size=BATCH,
            top_k=None, truncation=True,
        )  # fmt: skip
        gc.enable()
        names = pipe.model.config.id2label
        found = [{one["label"]: one["score"] for one in each} for each in pipe(texts)]
        return [[each[names[n]] for n in range(len(names))] for each in found]
    model = _as_onnx(asked, tokenizer) if asked["way"] == "onnx" else _classifier(asked)
    size, scores = asked.get("batch_size", BATCH), list[list[float]]()
    gc.enable()
    for first in range(0, len(texts), size):
        chunk = [_named(text) for text in texts[first : first + size]]
        columns = {key: [text[key] for text in chunk] for key in chunk[0]}
        batch = tokenizer(**columns, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            given = model(**batch.to(_device()))
        logits = (given if isinstance(given, torch.Tensor) else given.logits).double()
        chances = logits.sigmoid() if asked["is_several"] else logits.softmax(1)
        scores += chances.tolist()
    return scores


class _Logits(torch.nn.Module):
    """A classifier of transformers that takes tensors by their places and gives its logits."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes)."""
        logits: torch.Tensor = self.model(**dict(zip(self.names, given, strict=True))).logits
        return logits


def _as_onnx(asked: dict[str, Any], tokenizer: Any) -> Any:
    """Write model.onnx beside the weights; returns what onnxruntime computes with that file alone.

    Its inputs are what the tokenizer gives, (batch, tokens) of any size.
    """
    import onnxruntime

    path = Path(asked["folder"]) / "model.onnx"
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(asked["folder"], dtype=torch.float32).eval()
    samples = [_named(asked["texts"][0]), _named(asked["texts"][-1])]
    columns = {key: [sample[key] for sample in samples] for key in samples[0]}
    batch = tokenizer(**columns, padding=True, truncation=True, return_tensors="pt")
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        torch.onnx.export(
            _Logits(model, list(batch)), tuple(batch.values()), str(path), dynamo=True,
            verbose=False, input_names=list(batch), output_names=["logits"],
            external_data=size > _MOST_BYTES, dynamic_shapes=(tuple(free for _ in batch),),
        )  # fmt: skip
    except torch.onnx.OnnxExporterError:
        sys.exit(f"torch.onnx does not write {type(model).__name__}; leave out --format onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(**given: torch.Tensor) -> torch.Tensor:
        arrays = {name: tensor.cpu().numpy() for name, tensor in given.items()}
        return torch.from_numpy(session.run(["logits"], arrays)[0])

    return run


def losses_of_ids(asked: dict[str, Any]) -> list[list[float]]:
    """Mean negative log-likelihood of the targets of each text, given as token ids."""
    if asked["way"] == "pipeline":
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(asked["folder"])
    else:
        model = _adapted(asked)
    model = model.to(_device()).eval()
    gc.enable()
    losses = []
    for ids, targets in zip(asked["ids"], asked["targets"], strict=True):
        row = torch.tensor([ids], device=_device())
        with torch.no_grad():
            logits = model(input_ids=row).logits[0].double()
        places = torch.tensor(targets, device=_device())
        chosen = logits[places - 1].log_softmax(-1).gather(1, row[0, places, None])
        losses.append([-float(chosen.mean())])
    return losses


def _named(text: Any) -> dict[str, Any]:
    """What a tokenizer takes, of a text or a pair."""
    return text if isinstance(text, dict) else {"text": text}


def _classifier(asked: dict[str, Any]) -> Any:
    if asked["way"] == "loader":
        loader = runpy.run_path(str(Path(asked["folder"]) / "load_classifier.py"))
        if not asked["quantization"]:
            return loader["load"](asked["folder"]).to(_device())
        backbone = _adapted(asked).get_base_model()
        return loader["Classifier"](backbone, asked["pooling"]).to(_device()).eval()
    return _adapted(asked).to(_device()).eval()


def _adapted(asked: dict[str, Any]) -> Any:
    """The adapter on its base, quantised afresh where it was."""
    if not asked["quantization"]:  # PEFT imports what quantises, and with it a compiler
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    from peft import PeftModel

    config = transformers.AutoConfig.from_pretrained(asked["base"]).get_text_config()
    for key, value in asked["settings"].items():
        setattr(config, key, value)
    more: dict[str, Any] = {}
    if asked["quantization"]:
        more["quantization_config"] = transformers.BitsAndBytesConfig(**asked["quantization"])
    kind = getattr(transformers, asked["model_class"])
    base = kind.from_pretrained(
        asked["base"], config=config, key_mapping=asked["key_mapping"],
        dtype=getattr(torch, asked["dtype"]), **more,
    )  # fmt: skip
    if asked["way"] == "loader":  # transformers has no class with the head
        base.score = torch.nn.Linear(config.hidden_size, config.num_labels, bias=False)
    model = PeftModel.from_pretrained(base, asked["folder"])
    for module in model.modules():  # a CPU with AVX512-BF16 would repack quantised weights
        module.support_avx512bf16_for_cpu = False
    return model


def _device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    remark = ""
    if "ids" in request:
        found = losses_of_ids(request)
    else:
        tokens, remark = tokenizer_of(request)
        found = scores_of_texts(request, tokens)
    Path(sys.argv[2]).write_text(json.dumps({"scores": found, "remark": remark}), encoding="utf-8")
