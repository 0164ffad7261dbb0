"""How a command ends: with its answer, as a table for people, as JSON for programs, or with nothing."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

from convatlas.core.config import Section

__all__ = ["Answer", "Answering", "Quiet", "answering", "as_table", "take_answering"]

QUIET_FLAGS = frozenset({"-q", "--quiet"})
NO_TERMINAL = 10_000
"""Columns of a table that goes to a file or another program: none of its cells is broken over lines."""

Answer = Callable[[str, Any], None]
"""Takes the answer as text, and as what JSON holds."""


class Quiet(Section):
    """The option of a command that prints something."""

    quiet: bool = False
    """Also -q: print nothing but errors."""


class Answering(Quiet):
    """The options of a command whose answer is printed."""

    format: Literal["text", "json"] = "text"
    """json prints the answer alone, as JSON; what else there is to say goes to standard error."""


def take_answering(arguments: Sequence[str]) -> tuple[Answering, list[str]]:
    """Take `-q` and `format=json` from a command line that Hydra reads; returns them and the other words."""
    own: dict[str, dict[str, Any]] = {f"format={name}": {"format": name} for name in ("text", "json")}
    own |= {flag: {"quiet": True} for flag in QUIET_FLAGS}
    values: dict[str, Any] = {}
    for word in arguments:
        values |= own.get(word, {})
    return Answering.model_validate(values), [word for word in arguments if word not in own]


@contextmanager
def answering(options: Quiet) -> Iterator[Answer]:
    """Give what prints the answer of the block; what the block prints by itself does not come between."""
    out = sys.stdout
    as_json = isinstance(options, Answering) and options.format == "json"

    def answer(text: str, record: Any) -> None:
        if not options.quiet:
            print(json.dumps(record, ensure_ascii=False) if as_json else text, file=out, flush=True)

    if options.quiet:
        os.environ["TQDM_DISABLE"] = "1"
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield answer
    elif as_json:
        with redirect_stdout(sys.stderr):
            yield answer
    else:
        yield answer


def as_table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Lay a table out as lines of text; its first `words` columns are words, the others numbers.

    A terminal that is too narrow breaks cells over lines.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style=None)
    for number, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if number < words else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    width = shutil.get_terminal_size().columns if sys.__stdout__ and sys.__stdout__.isatty() else NO_TERMINAL
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    return "\n".join(line[1:].rstrip() for line in text.getvalue().splitlines()).strip("\n")
