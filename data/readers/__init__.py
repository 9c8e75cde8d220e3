"""Files, archives, folders and saved datasets to records, streamed, every fault with its place.

Imports text/ and data/'s root.
"""

from data.readers.corpus import language_paths, named_files
from data.readers.language import read_language
from data.readers.read import SPLITS, read_records
from data.readers.reading import ReadFacts
from data.readers.sources import file_digest, source_digest, split_path

__all__ = [
    "SPLITS",
    "ReadFacts",
    "file_digest",
    "language_paths",
    "named_files",
    "read_language",
    "read_records",
    "source_digest",
    "split_path",
]
