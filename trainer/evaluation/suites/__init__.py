"""Published suites of tasks: their items, answers that are read, programs that are run, scores.

Imports evaluation/'s shared files, generation/ and the rooms above. `inside.py` is imported by
nothing: it runs in the sandbox.
"""
