"""One file a kernel, next to its derivation; trainer/losses.py holds the reference they equal."""
