"""The numbers that the lecture prints, laid out as tables with ours beside them.

A study notes them as it found them: single numbers, numbers by net, numbers by data set and net, or columns of a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convatlas.core.metrics import as_words
from convatlas.reporting.study import Study, Variant
from convatlas.reporting.wording import DASH, PLUS_MINUS, listed, megabytes

Ours = Callable[[Variant], str]


@dataclass(frozen=True)
class PrintedTable:
    """Figures by net: a printed column, and ours behind it where we measured the same.

    Attributes:
        columns: title, and whether the figures are ours.
        rows: the net's name, and a figure for each column.
    """

    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def has_ours(self) -> bool:
        """Whether any of it is ours."""
        return any(ours for _, ours in self.columns)


@dataclass(frozen=True)
class PrintedNumbers:
    """All printed figures of a study: single ones, and tables."""

    facts: tuple[tuple[str, str], ...]
    tables: tuple[PrintedTable, ...]


def printed_numbers(study: Study) -> PrintedNumbers:
    """Lay out the printed figures of a study."""
    facts: list[tuple[str, str]] = []
    by_net: dict[str, Mapping[str, Any]] = {}
    tables: list[PrintedTable] = []
    for name, value in _flat(study.plan.printed):
        if not isinstance(value, Mapping):
            facts.append((as_words(name), _written(value)))
        elif _is_columns(value):
            tables.append(_from_columns(value))
        else:
            by_net[name] = {str(net): figure for net, figure in value.items()}
    tables += [_from_nets(study, columns) for columns in _that_share_nets(by_net)]
    return PrintedNumbers(tuple(facts), tuple(tables))


def _flat(printed: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Open mappings of mappings: `test_error: {cifar10: {...}}` becomes `test_error, cifar10`."""
    found: list[tuple[str, Any]] = []
    for key, value in printed.items():
        name = f"{above}, {key}" if above else str(key)
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            found += _flat(value, name)
        else:
            found.append((name, value))
    return found


def _is_columns(value: Mapping[str, Any]) -> bool:
    lengths = {len(column) if isinstance(column, list) else -1 for column in value.values()}
    return len(lengths) == 1 and lengths != {-1}


def _from_columns(value: Mapping[str, list[Any]]) -> PrintedTable:
    columns = tuple((as_words(str(name)), False) for name in value)
    rows = (tuple(map(_written, row)) for row in zip(*value.values(), strict=True))
    return PrintedTable(columns, tuple((str(number), row) for number, row in enumerate(rows, start=1)))


def _that_share_nets(by_net: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Mapping[str, Any]]]:
    """Put columns that speak of the same nets into one table."""
    tables: list[dict[str, Mapping[str, Any]]] = []
    for name, column in by_net.items():
        fitting = next((table for table in tables if any(set(column) & set(other) for other in table.values())), None)
        if fitting is None:
            tables.append({name: column})
        else:
            fitting[name] = column
    return tables


def _from_nets(study: Study, columns: Mapping[str, Mapping[str, Any]]) -> PrintedTable:
    nets = list(dict.fromkeys(net for column in columns.values() for net in column))
    variants = {variant.key: variant for variant in study.variants}
    titles: list[tuple[str, bool]] = []
    figures: list[list[str]] = []
    for name, column in columns.items():
        titles.append((as_words(name), False))
        figures.append([_written(column.get(net)) for net in nets])
        measure = ours_beside(name)
        data = list(dict.fromkeys(variants[net].data for net in nets if net in variants))
        own = [measure(variants[net]) if measure and net in variants else DASH for net in nets]
        if any(figure != DASH for figure in own):
            titles.append((f"ours on {listed(data)}", True))
            figures.append(own)
    names = [variants[net].title if net in variants else as_words(net) for net in nets]
    rows = zip(names, zip(*figures, strict=True), strict=True)
    return PrintedTable(tuple(titles), tuple(rows))


def ours_beside(name: str) -> Ours | None:
    """Find what of ours stands beside a printed figure, by the words in its name; None where nothing does.

    Errors and accuracies are in percent, parameters and multiply-adds in millions (or what the name says), as the
    lecture prints them.
    """
    words = set(re.split(r"[\W_]+", name.lower()))
    scale = 1e9 if "billion" in words else 1e6
    if words & {"error", "accuracy"}:
        metric = "accuracy_top5" if "top5" in words else "accuracy"
        return lambda variant: _share(variant, metric, wrong="error" in words)
    if words & {"map", "ap"}:
        return lambda variant: _share(variant, "map")
    if words & {"params", "parameters"}:
        return lambda variant: _scaled(variant.cost("parameters"), scale)
    if words & {"macs", "madds", "flops"}:
        return lambda variant: _scaled(variant.macs, scale)
    if "megabytes" in words:
        return lambda variant: megabytes(variant.cost("weight_megabytes"))
    return None


def _share(variant: Variant, metric: str, *, wrong: bool = False) -> str:
    found = variant.test(metric)
    if found is None or not found.is_finite:
        return DASH
    mean = 100 * (1 - found.mean if wrong else found.mean)
    return f"{mean:.2f}" if found.std is None else f"{mean:.2f} {PLUS_MINUS} {100 * found.std:.2f}"


def _scaled(value: float | None, scale: float) -> str:
    return DASH if value is None else f"{value / scale:.3g}"


def _written(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_written, value))
    return str(value)
