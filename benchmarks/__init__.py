"""What we claim, one script a claim, each against its peer in the same run."""
