"""Base models, heads and the isolation of packed functions."""
