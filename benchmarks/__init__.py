"""What we claim, one script a claim, each against its peers in the same run."""
