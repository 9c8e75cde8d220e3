"""Files, archives, folders and saved datasets to records, streamed, every fault with its place.

Imports text/ and data/'s root.
"""

from data.readers.digests import file_digest, source_digest
from data.readers.locate import locate, named_files, overlooked, unread
from data.readers.names import SPLITS, told_apart
from data.readers.read import read_language, read_records
from data.readers.reading import ReadFacts

__all__ = [
    "SPLITS",
    "ReadFacts",
    "file_digest",
    "locate",
    "named_files",
    "overlooked",
    "read_language",
    "read_records",
    "source_digest",
    "told_apart",
    "unread",
]
