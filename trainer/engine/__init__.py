"""DeepSpeed, the optimizer, and their state as full fp32 tensors.

Imports planning/ and the rooms above.
"""
