"""Importing large libraries in less time."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quick_imports"]


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without collecting garbage, and never look through what the imports made.

    Where everything is imported already, nothing is set aside: in a process of many trainings that would keep garbage.

    Torch, Lightning and MLflow make a million objects that stay; looking for garbage among them again and again took a
    third of the start of a training.
    """
    if not gc.isenabled():
        yield
        return
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
            atexit.register(gc.unfreeze)  # C++ libraries complain of what is not freed in the end
        gc.enable()
