"""Output layer and token loss of a language model in one, for any ZeRO stage.

T tokens before targets, C tokens of a chunk, D hidden, V vocabulary.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.config.sections import LossSection
from trainer.errors import ModelError
from trainer.kernels.chunks import device_chunk
from trainer.kernels.linear_focal import cap_logits
from trainer.losses.loss import linear_focal_loss

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from trainer.tuning.plain import PlainModel


class TokenLoss(nn.Module):
    """The loss of hidden states, or their scores, without all of the output layer's logits.

    Keep it inside the module given to DeepSpeed. Under ZeRO-3 this forward reads the weight, so
    DeepSpeed gathers it for this module only, in the forward and the backward pass, and not while
    the backbone runs.

    Args:
        model: Owns the output layer, tied or not; it is not registered a second time.
        loss: gamma, and the settled back end.
        detach_modulator: As in `linear_focal_loss`.

    Attributes:
        scale, cap: What the model does to its logits: see trainer/models/output.py.
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel | PlainModel",
        loss: LossSection,
        detach_modulator: bool = False,
    ) -> None:
        super().__init__()
        self._head = (output_layer(model),)  # in a tuple: not a child of this module
        self.loss = loss
        self.detach_modulator = detach_modulator
        self.scale = 1.0
        self.cap: float | None = None

    def forward(
        self,
        hidden_TD: Tensor,
        targets_T: Tensor | None = None,
        weights_T: Tensor | None = None,
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Sum and count in training, arguments as in `linear_focal_loss`; else `token_scores`.

        Without targets the logits (T, V) in fp32, of few states.
        A tuple, not a LossSum: DeepSpeed finds tensors in tuples only.
        """
        # Read once: under ZeRO-3 each call of the layer is a collective, and ranks have different
        # numbers of chunks.
        weight: Tensor = self._head[0].weight
        bias: Tensor | None = self._head[0].bias
        hidden_TD = hidden_TD.to(weight.dtype)
        if self.scale != 1:
            hidden_TD = hidden_TD * self.scale
            bias = None if bias is None else bias * self.scale
        if targets_T is None:
            return _logits(hidden_TD, weight, bias, self.cap)
        if not self.training:
            return token_scores(hidden_TD, targets_T, weight, bias, self.cap)
        loss = linear_focal_loss(
            hidden_TD,
            weight,
            targets_T,
            self.loss.gamma,
            bias_V=bias,
            weights_T=weights_T,
            detach_modulator=self.detach_modulator,
            backend=self.loss.backend,
            cap=self.cap,
        )
        return loss.sum, loss.count


def token_scores(
    hidden_TD: Tensor,
    labels_T: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    cap: float | None = None,
) -> Tensor:
    """Three columns in fp32 (T, 3), with only a chunk of logits in memory at a time.

    The negative log-likelihood of each label in nats; its logit minus the highest other logit,
    positive where the label is the choice; the id of the choice, exact up to 2^24.
    """
    (num_tokens, hidden_size), vocabulary = hidden_TD.shape, len(weight_VD)
    size = device_chunk(num_tokens, hidden_size, vocabulary, weight_VD.dtype, hidden_TD.device)
    chunks = zip(torch.split(hidden_TD, size), torch.split(labels_T, size), strict=True)
    return torch.cat(
        [
            _scores(_logits(hidden_CD, weight_VD, bias_V, cap), labels_C)
            for hidden_CD, labels_C in chunks
        ]
    )


def _logits(
    hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, cap: float | None
) -> Tensor:
    logits_CV = nn.functional.linear(hidden_CD, weight_VD, bias_V).float()
    if cap is not None:
        cap_logits(logits_CV, cap)
    return logits_CV


def _scores(logits_CV: Tensor, labels_C: Tensor) -> Tensor:
    own_C1 = logits_CV.gather(1, labels_C[:, None])
    highest_C = logits_CV.argmax(1)
    nll_C = logits_CV.logsumexp(1) - own_C1[:, 0]
    others_CV = logits_CV.scatter(1, labels_C[:, None], float("-inf"))
    margin_C = own_C1[:, 0] - others_CV.amax(1)
    return torch.stack([nll_C, margin_C, highest_C.float()], dim=1)


def output_layer(model: "PreTrainedModel | PeftModel | PlainModel") -> nn.Linear:
    """The layer that projects to the vocabulary; its trained copy where PEFT trains it whole.

    Raises:
        ModelError: It is missing, adapted or quantised: its weight alone is not the projection.
    """
    whole: Any = model
    base = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    head: Any = base.get_output_embeddings()
    copies = getattr(head, "modules_to_save", None)
    if copies is not None:
        head = copies[head.active_adapter]
    if type(head) is not nn.Linear:
        raise ModelError(
            f"the output layer is {type(head).__name__}; the fused loss needs one nn.Linear: leave"
            " it out of tuning.target_modules, or train it whole by tuning.modules_to_save"
        )
    return head
