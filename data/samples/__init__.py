"""The embedded sample: generated functions with and without a flaw, and a tiny tokenizer."""
