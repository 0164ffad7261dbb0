"""Importing large libraries in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quick_imports"]


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without collecting garbage, and never look through what the imports made.

    Torch, Lightning and MLflow make a million objects that stay; looking for garbage among them again and again took a
    third of the start of a training.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
