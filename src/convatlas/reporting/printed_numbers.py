"""The numbers that the lecture prints, laid out as tables with ours beside them.

A study notes them as it found them: single numbers, numbers by net, numbers by data set and net, or columns of a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from convatlas.core.metrics import as_words
from convatlas.reporting.study import Study, Variant
from convatlas.reporting.wording import DASH, PLUS_MINUS, listed, megabytes

Numbers = Mapping[str, Any]
Cell = tuple[str, float | None]
"""A number as it is written, and itself."""
NOTHING: Cell = (DASH, None)


@dataclass(frozen=True)
class PrintedTable:
    """Numbers by net: a printed column, and ours behind it where we measured the same.

    Attributes:
        columns: title, and whether the numbers are ours.
        rows: the net's name, and a number for each column, as it is written.
        numbers: the same as numbers, a row each; None where there is none. Empty where none of them is ours.
    """

    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    numbers: tuple[tuple[float | None, ...], ...] = ()

    @property
    def has_ours(self) -> bool:
        """Whether any of it is ours."""
        return any(ours for _, ours in self.columns)

    @property
    def bars(self) -> list[list[float | None]]:
        """How long each number's bar is, from 0 to 100; a printed column and ours behind it share a scale.

        None where there is no number, or nothing of ours beside it.
        """
        lengths: list[list[float | None]] = [[None] * len(self.columns) for _ in self.rows]
        for column, (_, ours) in enumerate(self.columns):
            pair = (column - 1, column) if ours else ()
            longest = max((row[place] or 0 for row in self.numbers for place in pair), default=0)
            for values, bars in zip(self.numbers, lengths, strict=True) if ours else ():
                for place in pair if longest > 0 else ():
                    value = values[place]
                    bars[place] = None if value is None or value < 0 else 100 * value / longest
        return lengths


@dataclass(frozen=True)
class PrintedNumbers:
    """All printed numbers of a study: single ones, and tables."""

    facts: tuple[tuple[str, str], ...]
    tables: tuple[PrintedTable, ...]


def printed_numbers(study: Study) -> PrintedNumbers:
    """Lay out the printed numbers of a study; columns that name the same nets share a table."""
    facts: list[tuple[str, str]] = []
    tables: list[PrintedTable] = []
    by_net: list[dict[str, Numbers]] = []
    for name, value in _flat(study.plan.printed):
        if not isinstance(value, Mapping):
            facts.append((as_words(name), _written(value)))
        elif all(isinstance(column, list) for column in value.values()) and len(set(map(len, value.values()))) == 1:
            rows = (tuple(map(_written, row)) for row in zip(*value.values(), strict=True))
            numbered = tuple((str(number), row) for number, row in enumerate(rows, start=1))
            tables.append(PrintedTable(tuple((as_words(str(column)), False) for column in value), numbered))
        else:
            column = {str(net): number for net, number in value.items()}
            shared = next(
                (found for found in by_net if any(set(column) & set(other) for other in found.values())), None
            )
            if shared is None:
                by_net.append(shared := {})
            shared[name] = column
    return PrintedNumbers(tuple(facts), (*tables, *(_beside_ours(study, columns) for columns in by_net)))


def _flat(printed: Numbers, above: str = "") -> list[tuple[str, Any]]:
    """Open mappings of mappings: `test_error: {cifar10: {...}}` becomes `test_error, cifar10`."""
    found: list[tuple[str, Any]] = []
    for key, value in printed.items():
        name = f"{above}, {key}" if above else str(key)
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            found += _flat(value, name)
        else:
            found.append((name, value))
    return found


def _beside_ours(study: Study, printed: Mapping[str, Numbers]) -> PrintedTable:
    nets = list(dict.fromkeys(net for column in printed.values() for net in column))
    variants = {variant.key: variant for variant in study.variants if variant.key in nets}
    columns: list[tuple[str, bool]] = []
    cells: list[list[Cell]] = []
    for name, column in printed.items():
        columns.append((as_words(name), False))
        cells.append([_printed(column.get(net)) for net in nets])
        measure = ours_beside(name)
        own = [measure(variants[net]) if measure and net in variants else NOTHING for net in nets]
        if any(cell != NOTHING for cell in own):
            data = dict.fromkeys(variants[net].data for net in nets if net in variants)
            columns.append((f"ours on {listed(list(data))}", True))
            cells.append(own)
    names = [variants[net].title if net in variants else as_words(net) for net in nets]
    rows = list(zip(*cells, strict=True))
    texts = tuple((name, tuple(text for text, _ in row)) for name, row in zip(names, rows, strict=True))
    return PrintedTable(tuple(columns), texts, tuple(tuple(number for _, number in row) for row in rows))


def ours_beside(name: str) -> Callable[[Variant], Cell] | None:
    """Return what of ours has the meaning of a printed number, by the words in its name; None where nothing has.

    Errors and accuracies are in percent, parameters and multiply-adds in millions (or what the name says), as the
    lecture prints them.
    """
    words = set(re.split(r"[\W_]+", name.lower()))
    scale = 1e9 if "billion" in words else 1e6
    if words & {"error", "accuracy"}:
        metric = "accuracy_top5" if "top5" in words else "accuracy"
        return lambda variant: _percent(variant, metric, is_error="error" in words)
    if words & {"map", "ap"}:
        return lambda variant: _percent(variant, "map")
    if words & {"params", "parameters"}:
        return lambda variant: _scaled(variant.cost("parameters"), scale)
    if words & {"macs", "madds", "flops"}:
        return lambda variant: _scaled(variant.macs, scale)
    if "megabytes" in words:
        return lambda variant: _megabytes(variant.cost("weight_megabytes"))
    return None


def _percent(variant: Variant, metric: str, *, is_error: bool = False) -> Cell:
    found = variant.test(metric)
    if found is None or not found.is_finite:
        return NOTHING
    mean = 100 * (1 - found.mean if is_error else found.mean)
    return (f"{mean:.2f}" if found.std is None else f"{mean:.2f} {PLUS_MINUS} {100 * found.std:.2f}"), mean


def _scaled(value: float | None, scale: float) -> Cell:
    return NOTHING if value is None else (f"{value / scale:.3g}", value / scale)


def _megabytes(value: float | None) -> Cell:
    return megabytes(value), value


def _printed(value: Any) -> Cell:
    return _written(value), float(value) if isinstance(value, int | float) else None


def _written(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_written, value)) if isinstance(value, list) else str(value)
