"""What a recipe says, typed, and what cannot go together. Imports trainer/errors and data/."""
