"""Measures and report of classified functions.

Imports evaluation/'s shared files and the rooms above.
"""
