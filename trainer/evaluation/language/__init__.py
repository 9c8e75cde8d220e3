"""Measures and report of a language task.

Imports evaluation/'s shared files and the rooms above.
"""
