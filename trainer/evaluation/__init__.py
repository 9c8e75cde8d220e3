"""Measures of a task with their intervals and baselines, and the report.

Imports generation/ and the rooms above.
"""
