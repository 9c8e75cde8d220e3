"""Each task's loss of a batch as (sum, count). Imports kernels/ and the rooms above."""
