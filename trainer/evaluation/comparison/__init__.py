"""Runs compared on the same test set, from their reports and predictions; without torch.

Imports evaluation/'s shared files, language/'s sums and the rooms above.
"""
