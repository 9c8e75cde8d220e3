"""Whether scores survive a change of the text that changes nothing of what a function does."""
