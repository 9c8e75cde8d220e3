"""Prompts, and the texts a model writes after them. Imports cluster/ and the rooms above."""
