"""One run in the order it happens. Imports every room of trainer/ but sweep/."""
