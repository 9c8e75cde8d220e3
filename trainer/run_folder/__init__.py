"""What a run leaves on disk, and reading it back. Imports engine/ and the rooms above."""
