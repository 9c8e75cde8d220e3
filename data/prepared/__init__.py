"""Records encoded once and kept: cache, tables, splits, build.

Imports readers/ and the rooms above.
"""
