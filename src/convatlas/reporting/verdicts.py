"""Verdicts on a study's claims: confirmed, not confirmed, or within noise, with the figures behind them.

A claim compares two sides. Each seed that all variants of the claim have gives one difference of the sides, so what a
seed shares (the order of the batches, the test images) cancels. The verdict looks at the 95 % interval of their mean
(Student's t): wholly on the claimed side it confirms, wholly on the other it does not, across the border it is noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from convatlas.reporting.results import Claim, Study
from convatlas.reporting.statistics import spread
from convatlas.reporting.variants import SeedRun, Variant
from convatlas.reporting.wording import Metric, count, duration, listed, spoken, with_prefix
from convatlas.studies.claims import Comparison, Quantity

Verdict = Literal["confirmed", "not confirmed", "within noise", "not tested"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Checked:
    """One comparison on our runs.

    Attributes:
        text: the comparison as the study states it.
        verdict: what our runs say of it.
        figures: the quantities with mean and deviation, in words.
        interval: the compared value with its interval, in words; empty where it was not tested.
        reason: why it was not tested; empty otherwise.
    """

    text: str
    verdict: Verdict
    figures: str
    interval: str
    reason: str


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict."""

    claim: Claim
    verdict: Verdict
    checked: tuple[Checked, ...]


def judge(study: Study) -> list[Judged]:
    """Judge every claim of a study, in its order."""
    judged = []
    for claim in study.claims:
        checked = tuple(_check(comparison, study) for comparison in claim.holds)
        judged.append(Judged(claim, _together([part.verdict for part in checked]), checked))
    return judged


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of independent values; everything where there is one value alone."""
    from scipy.special import stdtrit  # half a second faster to import than scipy.stats

    found = spread(values)
    assert found is not None
    if found.low == found.high:
        return (found.low, found.high) if len(values) > 1 else (-math.inf, math.inf)
    if found.deviation is None or not math.isfinite(found.deviation):
        return -math.inf, math.inf
    reach = float(stdtrit(found.n - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(found.squared_error)
    return found.mean - reach, found.mean + reach


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    """A claim of several parts is confirmed if all are, and not confirmed if one is not."""
    worst_first: list[Verdict] = ["not confirmed", "not tested", "within noise"]
    for verdict in worst_first:
        if verdict in verdicts:
            return verdict
    return "confirmed" if verdicts else "not tested"


def _check(comparison: Comparison, study: Study) -> Checked:
    quantities = comparison.quantities()
    variants = {variant.key: variant for variant in study.variants}
    runs = {q: {run.seed: run for run in variants[q.variant].runs} for q in quantities}
    missing = [q for q in quantities if all(run.figure(q) is None for run in runs[q].values())]
    if missing:
        reason = f"no run has {_name(missing[0], variants)}"
        return Checked(comparison.text, "not tested", "", "", reason)
    common = sorted(
        set.intersection(*({s for s, r in found.items() if r.figure(q) is not None} for q, found in runs.items()))
    )
    if len(common) < 2 and not all(_is_exact(q) for q in quantities):
        reason = (
            f"it needs two seeds that all its variants have; there {'is' if len(common) == 1 else 'are'} {len(common)}"
        )
        return Checked(comparison.text, "not tested", _figures(quantities, runs, variants), "", reason)
    sides = [comparison.sides({q: _of(runs[q][seed], q) for q in quantities}) for seed in common]
    differences = [left - right for left, right in sides]
    if not all(map(math.isfinite, differences)):
        return Checked(
            comparison.text, "not tested", _figures(quantities, runs, variants), "", "a figure is not finite"
        )
    low, high = interval(differences) if len(common) > 1 else (differences[0], differences[0])
    return Checked(
        comparison.text,
        _verdict(comparison.relation, low, high),
        _figures(quantities, runs, variants),
        _interval_text(comparison, sides, low, high),
        "",
    )


def _of(run: SeedRun, quantity: Quantity) -> float:
    value = run.figure(quantity)
    assert value is not None
    return value


def _is_exact(quantity: Quantity) -> bool:
    """Say whether a figure is counted and not measured, so that one seed is enough."""
    return quantity.figure in {"parameters", "macs", "macs_inference", "weight_megabytes", "activation_bytes"}


def _verdict(relation: str, low: float, high: float) -> Verdict:
    if relation in (">", ">="):
        low, high = -high, -low
    touches = relation in ("<=", ">=")
    if high < 0 or (touches and high <= 0):
        return "confirmed"
    if low > 0 or (low == high == 0 and not touches):
        return "not confirmed"
    return "within noise"


def _interval_text(comparison: Comparison, sides: Sequence[tuple[float, float]], low: float, high: float) -> str:
    """Write the left side against a printed number, or the difference of two measured sides."""
    if comparison.right_is_a_number:
        name, value, border = "left side", sides[0][1], sides[0][1]
        low, high = low + value, high + value
        middle = math.fsum(left for left, _ in sides) / len(sides)
    else:
        name, border = "difference", 0.0
        middle = math.fsum(left - right for left, right in sides) / len(sides)
    seeds = count(len(sides), "seed")
    measured = f"{name} {middle:.4g}, 95 % interval {low:.4g} to {high:.4g} ({seeds})"
    return f"{measured}; claimed {comparison.relation} {border:g}"


def _figures(
    quantities: Sequence[Quantity], runs: dict[Quantity, dict[int, SeedRun]], variants: dict[str, Variant]
) -> str:
    return "; ".join(f"{_name(q, variants)} {_written(q, runs[q])}" for q in quantities)


def _name(quantity: Quantity, variants: dict[str, Variant]) -> str:
    figure = spoken(quantity.figure)
    if quantity.figure == "history":
        epoch = quantity.epoch or 0
        figure = f"{spoken(quantity.column or '')} at " + (f"epoch {epoch}" if epoch > 0 else "the last epoch")
    part = f", {spoken(quantity.part)}" if quantity.part else ""
    return f"{figure} of {variants[quantity.variant].title}{part}"


def _written(quantity: Quantity, runs: dict[int, SeedRun]) -> str:
    found = spread(run.figure(quantity) for run in runs.values())
    if found is None:
        return "–"
    if quantity.figure == "error":
        return Metric("accuracy").spread_text(found)
    if quantity.figure.endswith("_seconds"):
        return f"{duration(found.mean)}" + (f" ± {duration(found.deviation)}" if found.deviation else "")
    if _is_exact(quantity):
        return with_prefix(found.mean)
    if Metric(quantity.figure).unit:
        return Metric(quantity.figure).spread_text(found)
    return f"{found.mean:.3g}" + (f" ± {found.deviation:.2g}" if found.deviation is not None else "")


def tally(judged: Sequence[Judged]) -> str:
    """Count the verdicts in words, for a headline: `2 confirmed, 1 within noise`."""
    names: list[Verdict] = ["confirmed", "not confirmed", "within noise", "not tested"]
    counts = [(sum(entry.verdict == name for entry in judged), name) for name in names]
    return listed([f"{number} {name}" for number, name in counts if number])
