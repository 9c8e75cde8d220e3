"""Ranks, collectives, the launchers above us, stopping and hanging. Imports config/ and errors."""
