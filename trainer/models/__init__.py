"""Loading, heads, attention over packed rows, and the proofs at the start of a run.

Imports tuning/ and the rooms above.
"""
