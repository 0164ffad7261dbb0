"""convatlas: the convolutional architectures of a lecture course, trained and compared, each beside its paper."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convatlas.catalogue import create_model as create_model
    from convatlas.catalogue import list_models as list_models

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what builds and lists nets when it is first asked for, so that `import convatlas` takes no time."""
    if name in ("create_model", "list_models"):
        return getattr(importlib.import_module("convatlas.catalogue"), name)
    raise AttributeError(f"module 'convatlas' has no attribute {name!r}")
