"""Tuning methods: METHODS[name](base, config) -> the model with its trainable parameters."""

from trainer.tuning.lora import add_lora

METHODS = {"lora": add_lora, "qlora": add_lora}  # qlora differs in its base
