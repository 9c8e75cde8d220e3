"""Prepared examples to batches: packing, order, collation, sampling.

Imports prepared/ and the rooms above.
"""
