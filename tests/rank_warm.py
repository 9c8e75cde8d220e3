"""The last import of the forkserver of tests/rank_pool.py: what every rank would do again.

Python's collector would look at all objects of torch and transformers in each rank, and so copy
their pages; launcher/ takes them out of its way, too (trainer/processes/imports.py).
"""

import gc
from pathlib import Path

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from data.audit.markdown import compiled

for page in (Path(__file__).parents[1] / "trainer").rglob("*.md.jinja"):
    compiled(page)
get_checkpoint_conversion_mapping("")  # compiles a thousand patterns, which all models share
gc.collect()
gc.freeze()
