"""The lecture's own figures, as a study states them under `figures:`, and what the plan tells the report of them.

    figures:
      - title: Test error by survival probability
        x: model.survival                 # a key of the configuration, or a figure of the runs such as macs, or
        x_title: p_L                      # numbers by variant: {constant: 1, linear_p05: 0.5}
        y: error                          # a figure of the runs, in the words of convatlas.studies.claims
        log: [x]                          # axes that are logarithmic
        curves:                           # without curves: one, of all variants that have such an x
          linear decay: [constant, linear_p05, linear_p02]
          one column: [net.column_1]      # a part of a net that is tested on its own
        printed:                          # what the lecture prints, drawn beside ours
          CIFAR-10: {y: test_error.cifar10}

A printed curve's `y` leads into the study's `printed`: to a list, with an `x` that leads to a list as long, or to
figures by net, with an `x` that leads to figures of the same nets or gives them; without `x` they are the variants' own
where the figure or the configuration gives numbers. `nets` takes some of the nets alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from convatlas.core.config import RunConfig, Section
from convatlas.core.errors import UserError, near_matches

__all__ = ["PrintedCurve", "StudyFigure", "check_figures", "named_in", "planned_figures", "printed_at"]

Numbers = dict[str, float]


class PrintedCurve(Section):
    """A curve that the lecture prints."""

    y: str
    """Path into the study's `printed`, for example `test_error.cifar10`."""
    x: str | Numbers | None = None
    """Such a path, or numbers by net; null takes the x of the variants that the nets are called after."""
    nets: list[str] | None = None


class StudyFigure(Section):
    """One figure; see the head of this file."""

    title: str
    x: str | Numbers
    x_title: str | None = None
    y: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    log: list[Literal["x", "y"]] = Field(default=[])
    curves: dict[str, list[str]] = Field(default={})
    printed: dict[str, PrintedCurve] = Field(default={})


def check_figures(
    figures: Sequence[StudyFigure], variants: Sequence[str], printed: Mapping[str, Any], where: str
) -> None:
    """Raise UserError unless every figure speaks of variants and printed figures that there are."""
    for figure in figures:
        prefix = f"{where}: the figure {figure.title!r}"
        numbers = figure.x if isinstance(figure.x, dict) else {}
        not_yet_known = isinstance(figure.x, str) and "." in figure.x
        entries = [entry for curve in figure.curves.values() for entry in curve]
        for entry in [*numbers, *entries]:
            variant = entry.partition(".")[0]
            if variant not in variants:
                raise UserError(f"{prefix} names no variant of the study: {entry}. {near_matches(variant, variants)}")
        for entry in entries:
            if numbers and entry not in numbers:
                raise UserError(f"{prefix} has no number for {entry}; add it to x, or take it from its curve.")
        if isinstance(figure.x, dict) and not figure.x_title:
            raise UserError(f"{prefix} gives numbers as x and must name them; add x_title.")
        for curve in figure.printed.values():
            _printed_points(curve, None if not_yet_known else numbers, printed, prefix)


def named_in(figure: StudyFigure) -> set[str]:
    """Return the variants that a figure names."""
    entries = [
        *(figure.x if isinstance(figure.x, dict) else ()),
        *(e for curve in figure.curves.values() for e in curve),
    ]
    return {entry.partition(".")[0] for entry in entries}


def planned_figures(
    figures: Sequence[StudyFigure], configs: Mapping[str, RunConfig], printed: Mapping[str, Any], where: str
) -> list[dict[str, Any]]:
    """Return what `plan/<study>.yaml` holds of the figures: plain values, with every x that the plan can know.

    Raises:
        UserError: a variant's configuration has no number where a figure looks for it.
    """
    return [_planned(figure, configs, printed, f"{where}: the figure {figure.title!r}") for figure in figures]


def _planned(
    figure: StudyFigure, configs: Mapping[str, RunConfig], printed: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    numbers = _numbers(figure, configs, prefix)
    curves = figure.curves or {"measured": list(configs if numbers is None else numbers)}
    return {
        "title": figure.title,
        "x": figure.x if numbers is None else None,
        "x_title": figure.x_title or (str(figure.x).rpartition(".")[2].replace("_", " ") if numbers else None),
        "y": figure.y,
        "log": list(figure.log),
        "curves": {title: [_point(entry, numbers) for entry in entries] for title, entries in curves.items()},
        "printed": {title: _printed_points(c, numbers, printed, prefix) for title, c in figure.printed.items()},
    }


def _point(entry: str, numbers: Numbers | None) -> dict[str, Any]:
    variant, _, part = entry.partition(".")
    x = None if numbers is None else numbers.get(entry, numbers.get(variant))
    return {"variant": variant, "part": part or None, "x": x}


def _numbers(figure: StudyFigure, configs: Mapping[str, RunConfig], prefix: str) -> Numbers | None:
    """Return the x of every entry that the plan knows; None where the runs have to tell."""
    if isinstance(figure.x, dict):
        return figure.x
    if "." not in figure.x:
        return None
    found = {key: _at(config.plain(), figure.x) for key, config in configs.items()}
    numbers = {key: float(value) for key, value in found.items() if type(value) in (int, float)}
    named = {entry.partition(".")[0] for curve in figure.curves.values() for entry in curve} or set(numbers)
    if missing := sorted(named - set(numbers)):
        raise UserError(f"{prefix} needs {figure.x}, but the configuration of {missing[0]} has no such number.")
    if not numbers:
        raise UserError(f"{prefix} needs {figure.x}, but no variant's configuration has such a number.")
    return numbers


def _printed_points(
    curve: PrintedCurve, numbers: Numbers | None, printed: Mapping[str, Any], prefix: str
) -> list[list[float]]:
    """Return the points of a printed curve; `numbers` are the variants' own, None where they are not known yet."""
    values = printed_at(printed, curve.y, prefix)
    across: Any = printed_at(printed, curve.x, prefix) if isinstance(curve.x, str) else curve.x
    if isinstance(values, list):
        if not isinstance(across, list) or len(across) != len(values):
            raise UserError(f"{prefix}: printed.{curve.y} is a list and needs an x that leads to one as long.")
        points = list(zip(across, values, strict=True))
    elif isinstance(values, Mapping):
        if isinstance(across, list):
            raise UserError(f"{prefix}: printed.{curve.y} has figures by net, and its x is a list; name one by net.")
        by_net = across if across is not None else numbers
        if by_net is None:
            return []
        nets = curve.nets or [net for net in values if net in by_net]
        if lacking := [net for net in nets if net not in values or net not in by_net]:
            raise UserError(f"{prefix}: printed.{curve.y} and its x do not both have {lacking[0]}; name other nets.")
        points = [(by_net[net], values[net]) for net in nets]
    else:
        raise UserError(f"{prefix}: printed.{curve.y} is neither a list nor figures by net; choose one of these.")
    if not points or any(type(value) not in (int, float) for point in points for value in point):
        raise UserError(f"{prefix}: printed.{curve.y} and its x have no numbers in common; name an x that fits.")
    return [[float(x), float(y)] for x, y in points]


def printed_at(printed: Mapping[str, Any], path: str, prefix: str) -> Any:
    """Return what stands in a study's printed figures under a path such as `test_error.cifar10`.

    Raises:
        UserError: nothing does; `prefix` begins the message.
    """
    found = _at(printed, path)
    if found is None:
        raise UserError(f"{prefix} names {path}, which is not in the study's printed. {near_matches(path, printed)}")
    return found


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
