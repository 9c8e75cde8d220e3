"""The last import of the forkserver of tests/rank_pool.py: what every rank would do again.

Python's collector would look at all objects of torch and transformers in each rank, and so copy
their pages; launcher/ takes them out of its way, too (trainer/processes/imports.py).
"""

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("")  # compiles a thousand patterns, which all models share
gc.collect()
gc.freeze()
