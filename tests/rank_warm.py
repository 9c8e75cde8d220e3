"""What the forkserver of tests/rank_pool.py imports, and what every rank would do again.

Python's collector would look at all objects of torch and transformers in each rank, and so copy
their pages; launcher/ takes them out of its way, too (trainer/processes/imports.py).
"""

import gc
from importlib import import_module
from pathlib import Path

IMPORTED = (
    "launcher.train",
    "trainer.run.training",
    "setuptools",
    "deepspeed.module_inject.auto_ep_layer",
    "peft.tuners.lora.bnb",
    "bitsandbytes",
    "sklearn.linear_model",
    "sklearn.feature_extraction.text",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "torch.utils.tensorboard",
    "transformers.models.gpt_bigcode.modeling_gpt_bigcode",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "trainer.run.commands",
    "trainer.processes.rendezvous",
    "trainer.tuning.fused_lora",
    "deepspeed.comm.mori",
    "peft.utils.transformers_weight_conversion",
    "rich._emoji_codes",
    "importlib_metadata._adapters",
    "email.contentmanager",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
)

gc.disable()
for name in IMPORTED:
    import_module(name)

from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # noqa: E402

from data.audit.markdown import compiled  # noqa: E402
from trainer.cluster.facts import code_digest, own_revision  # noqa: E402

for page in (Path(__file__).parents[1] / "trainer").rglob("*.md.jinja"):
    compiled(page)
code_digest()
own_revision()
get_checkpoint_conversion_mapping("")  # compiles a thousand patterns, which all models share
gc.freeze()
gc.enable()
