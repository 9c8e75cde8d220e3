"""What the tests say in tuning.peft so that a method of PEFT fits a tiny model."""

PEFT_ARGUMENTS: dict[str, dict[str, object]] = {
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 1},
    "boft": {"boft_block_size": 4},
    "c3a": {"block_size": 8},
    "cartridge": {"num_virtual_tokens": 5},
    "fourierft": {"n_frequency": 100},
    "miss": {"r": 8},
    "oft": {"oft_block_size": 8},
    "prefix_tuning": {"num_virtual_tokens": 5},
    "prompt_tuning": {"num_virtual_tokens": 5},
    "psoft": {"r": 4},
    "randlora": {"r": 4},
    "road": {"group_size": 8},
    "shira": {"r": 2},
    "trainable_tokens": {"token_indices": [3, 4, 40, 50, 60]},
    "vblora": {"num_vectors": 16, "vector_length": 8},
    "waveft": {"n_frequency": 100},
}


def peft_overrides(method: str) -> list[str]:
    """For a command line."""
    given = PEFT_ARGUMENTS.get(method, {})
    return [f"tuning.peft.{name}={value}" for name, value in given.items()]
