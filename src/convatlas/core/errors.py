"""The error that a user causes and can correct, and the words for it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """Something that the user who started the program can correct.

    The message is one sentence or two: what is wrong, naming the key or the file, and what to do about it. Entry
    points print it without a traceback and exit with status 2.
    """


def near_matches(word: str, known: Iterable[str], how_many: int = 4) -> str:
    """Say which of `known` look like `word`, or list them when few, as the end of an error message."""
    names = sorted(set(known))
    close = (
        get_close_matches(word, names, n=how_many, cutoff=0.5) or [n for n in names if word and word in n][:how_many]
    )
    if close:
        return f"Did you mean {' or '.join(close)}?"
    shown = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    return f"There is: {shown}." if names else ""


def first_mistake(error: ValidationError) -> str:
    """Put the first finding of pydantic into words that name the key: `the key test.accuracy is missing`."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    place = f"the key {key}" if key else "the file"
    if first["type"] == "missing":
        return f"{place} is missing"
    return f"{place} is wrong ({first['msg'].removeprefix('Value error, ')})"
