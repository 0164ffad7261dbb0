"""Packages that only some commands need, and that an extra of pyproject.toml brings."""

from __future__ import annotations

import importlib
from typing import Any

from convatlas.core.errors import UserError

__all__ = ["load_extra"]


def load_extra(package: str, extra: str, what: str) -> Any:
    """Import a package that not every environment has.

    Args:
        package: its name in Python.
        extra: of pyproject.toml, which brings it.
        what: needs it, for the message, such as `format=onnx`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise UserError(f"{what} needs the package {package}: `pip install 'convatlas[{extra}]'` adds it.") from error
