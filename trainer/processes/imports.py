"""Imports of large packages without what nothing here uses."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from data.text.terminal import step


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Let no import of this block find these packages, unless they are imported already.

    None in sys.modules is Python's own way to say that a package is not there.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def stack_imports() -> Iterator[None]:
    """Import torch and transformers in this block, in three quarters of their time.

    transformers imports SciPy for losses of detected objects. And Python's collector would look
    again and again at half a million objects of modules, which all stay.
    """
    if "transformers" in sys.modules:
        yield
        return
    gc.disable()
    try:
        with without("scipy"), step("loading libraries"):
            yield
    finally:
        gc.freeze()
        gc.enable()
