"""PEFT's LoRA layer, fused forward and backward, or begun with a part of the base.

Parameters, names and files are PEFT's.
"""

from typing import Any

from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from trainer.errors import ModelError
from trainer.kernels.lora_linear import lora_linear


class FusedLoraLinear(Linear):  # type: ignore[misc]
    """A drop-in for PEFT's layer over nn.Linear or Conv1D.

    Only a plain layer with one active adapter is fused. PEFT does the rest: merging, disabled or
    several adapters, layers of a type of the model's own. Under ZeRO-3 this forward reads the
    weights, so DeepSpeed gathers them for this layer, in the forward and the backward pass.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        is_transposed = isinstance(base_layer, Conv1D)
        super().__init__(base_layer, adapter_name, is_target_conv_1d_layer=is_transposed, **kwargs)
        self.fan_in_fan_out = is_transposed

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, in the dtype of x."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        base = self.base_layer
        is_plain = type(base) in (nn.Linear, Conv1D) and x.dtype == base.weight.dtype
        is_other = args or kwargs or self.disable_adapters or self.merged or self.lora_variant
        if not is_plain or is_other or len(names) != 1:
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        (name,) = names
        dropout = self.lora_dropout[name]
        return lora_linear(
            x,
            base.weight,
            base.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
            dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0,
            self.is_target_conv_1d_layer,
        )


class PartLoraLinear(FusedLoraLinear):
    """PEFT's layer that begins with a part of its base: PiSSA (Meng et al. 2024), OLoRA.

    PEFT takes that part, s B0 A0, out of the base's weight. Here the weight stays, and the output
    loses what the part gives: the same function and the same gradients. A 16-bit weight is not
    rounded again, and what is trained is LoRA of rank 2 r on the base as it is: [B, -B0] [A; A0].
    """

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Begin as PEFT does, keep A0 and B0, give the base its weight back."""
        kept = self.get_base_layer().weight.data.clone()
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)  # not of the whole model
        super().update_layer(adapter_name, *args, **kwargs)
        self.get_base_layer().weight.data = kept
        a, b, rank = self.lora_A[adapter_name], self.lora_B[adapter_name], self.r[adapter_name]
        shapes = (tuple(a.weight.shape), tuple(b.weight.shape))
        is_olora = kwargs["config"].init_lora_weights == "olora"
        if shapes != ((rank, self.in_features), (self.out_features, rank)) or (
            is_olora and self.fan_in_fan_out
        ):
            raise ModelError(
                f"tuning.peft init_lora_weights: a layer of {self.in_features} x"
                f" {self.out_features} has no such part of rank {rank}; lower the rank, or take"
                " pissa, as PEFT's olora does not know transposed layers (Conv1D)"
            )
        self.register_buffer("start_A", a.weight.detach().clone(), persistent=False)
        self.register_buffer("start_B", b.weight.detach().clone(), persistent=False)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, in the dtype of x."""
        output: Tensor = Linear.forward(self, x, *args, **kwargs)
        if self.disable_adapters:
            return output
        assert not self.merged
        (name,) = self.lora_A
        dtype = self.lora_A[name].weight.dtype
        low = linear(x.to(dtype), self.start_A.to(dtype))
        part = linear(low, self.start_B.to(dtype)) * self.scaling[name]
        without: Tensor = output - part.to(output.dtype)
        return without
