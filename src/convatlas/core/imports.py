"""Importing large libraries in less time."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

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
        with _without_scipy_signal():
            yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
            atexit.register(gc.unfreeze)  # C++ libraries complain of what is not freed in the end
        gc.enable()


@contextmanager
def _without_scipy_signal() -> Iterator[None]:
    """Let torchmetrics find `scipy.signal`, to which it adds a name for old audio metrics, without its being imported.

    That takes a tenth of the start of a training. Whoever uses something of it gets the real one.
    """
    name = "scipy.signal"
    if name in sys.modules:
        yield
        return
    stand_in = ModuleType(name)

    def real(attribute: str) -> Any:
        if attribute.startswith("__"):  # `inspect` looks through all modules for a file
            raise AttributeError(attribute)
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    stand_in.__dict__.update(hamming=None, __getattr__=real)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
