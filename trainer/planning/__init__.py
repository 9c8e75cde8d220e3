"""Arithmetic before a run: memory, steps and time on a machine.

Imports models/ and the rooms above, and torch nowhere.
"""
