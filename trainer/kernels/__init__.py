"""One file a kernel, next to its derivation; losses/loss.py holds the reference they equal.

Imports torch and nothing of ours but each other.
"""
