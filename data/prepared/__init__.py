"""Records encoded once and kept: cache, tables, splits, kinds, build.

Imports readers/ and the rooms above.
"""
