"""A grid of tuning methods, models and seeds: its cells, how they run, and what they come to."""
