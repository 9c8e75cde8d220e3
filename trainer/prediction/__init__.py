"""A source tree -> functions, their scores, and findings for people and other tools.

It imports every other room but sweep/. Nothing that is read here is run, and no file of a tree can
end a run: what cannot be read or parsed is counted.
"""
