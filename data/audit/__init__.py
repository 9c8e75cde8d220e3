"""What is wrong with a dataset before a model learns it: leaks, duplicates, words that tell."""

from data.audit.whitespace import CollapseFacts, collapse_damage

__all__ = ["CollapseFacts", "collapse_damage"]
