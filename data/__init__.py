"""Raw files to batches; imports nothing of ours outside data/."""
