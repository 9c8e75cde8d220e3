"""The error of everything that reads the user's data."""


class DataError(ValueError):
    """A dataset that cannot be used: says the file, the line, what was found and the remedy."""

    exit_code = 3


class MappingError(DataError):
    """A recipe that maps fields or labels in a way no dataset could fit."""

    exit_code = 2
