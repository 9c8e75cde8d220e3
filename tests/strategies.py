"""Models whose records are kept apart by a strategy that a test names."""

from trainer.config.methods import SEGMENT_SDPA
from trainer.models.packed_attention import MASK, VARLEN, Strategy
from trainer.models.proof import Settings, use

BACK_ENDS = ("eager", "sdpa", SEGMENT_SDPA)


def kept_apart(model, attention=SEGMENT_SDPA):
    """The model with the way of a back end: SDPA segment by segment, or one mask."""
    use(model, Strategy(VARLEN if attention == SEGMENT_SDPA else MASK, attention))
    return model


def proof_settings(attention=SEGMENT_SDPA, **changed):
    """What the proof depends on: 256 tokens a row, packed, in fp32."""
    usual = {
        "attention": attention, "is_free": False, "seq_length": 256, "packing": True,
        "isolate": True, "precision": "fp32",
    }  # fmt: skip
    return Settings(**usual | changed)
