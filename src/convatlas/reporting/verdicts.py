"""Verdicts on a study's claims: confirmed, not confirmed, or within noise, with the figures behind them.

A claim compares two sides. Each seed that all variants of the claim have gives one difference of the sides, so what a
seed shares (the order of the batches, the test images) cancels. The verdict looks at the 95 % interval of their mean
(Student's t): wholly on the claimed side it confirms, wholly on the other it does not, across the border it is noise.
Seeds that all give the same measured difference have an interval of no width: it says nothing of other seeds or images,
and so decides nothing. What is counted (parameters, multiply-adds, bytes) needs no interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from convatlas.core.metrics import as_words, metric
from convatlas.core.statistics import spread
from convatlas.reporting.statistics import has_width, interval
from convatlas.reporting.study import COSTS, Claim, SeedRun, Study, Variant
from convatlas.reporting.wording import DASH, PLUS_MINUS, count, duration, listed, spread_text, with_prefix
from convatlas.studies.claims import Comparison, Quantity, read_claim

Verdict = Literal["confirmed", "not confirmed", "within noise", "not tested"]


@dataclass(frozen=True)
class Checked:
    """One comparison on our runs.

    Attributes:
        text: the comparison as the study states it.
        verdict: what our runs say of it.
        figures: the quantities with mean and standard deviation, in words.
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
    """Judge every claim of a study, in its order.

    Raises:
        UserError: a claim is not of the form of `convatlas.studies.claims`.
    """
    judged = []
    for claim in study.plan.claims:
        comparisons = [read_claim(text, f"the plan of the study {study.name}") for text in claim.holds]
        checked = tuple(_check(comparison, study) for comparison in comparisons)
        judged.append(Judged(claim, _together([part.verdict for part in checked]), checked))
    return judged


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
    if unknown := [q.variant for q in quantities if q.variant not in variants]:
        return Checked(comparison.text, "not tested", "", "", f"the plan has no variant {unknown[0]}")
    values = {q: _values(q, variants[q.variant].runs) for q in quantities}
    figures = "; ".join(f"{_name(q, variants)} {_written(q, values[q])}" for q in quantities)

    def not_tested(reason: str) -> Checked:
        return Checked(comparison.text, "not tested", figures, "", reason)

    if missing := [q for q in quantities if not values[q]]:
        return not_tested(f"no run has {_name(missing[0], variants)}")
    common = sorted(set.intersection(*(set(found) for found in values.values())))
    is_counted = all(map(_is_counted, quantities))
    if len(common) < 2 and not (is_counted and common):
        verb = "is" if len(common) == 1 else "are"
        return not_tested(f"it needs two seeds that all its variants have; there {verb} {len(common)}")
    sides = [comparison.sides({q: found[seed] for q, found in values.items()}) for seed in common]
    differences = [left - right for left, right in sides]
    if not all(map(math.isfinite, differences)):
        return not_tested("a value is not finite")
    low, high = interval(differences) if len(common) > 1 else (differences[0], differences[0])
    decides = is_counted or has_width(low, high)
    verdict = _verdict(comparison.relation, low, high) if decides else "within noise"
    text = _interval_text(comparison, sides, low, high)
    if not decides:
        text += "; all seeds have the same difference, so its noise is not known"
    return Checked(comparison.text, verdict, figures, text, "")


def _values(quantity: Quantity, runs: Sequence[SeedRun]) -> dict[int, float]:
    """Return a quantity by seed, of the runs that have it."""
    found = ((run.seed, run.value(quantity)) for run in runs)
    return {seed: value for seed, value in found if value is not None}


def _is_counted(quantity: Quantity) -> bool:
    """Say whether a quantity is counted and not measured, so that one seed is enough."""
    return quantity.figure in COSTS


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
    compared = f"{name} {middle:.4g}, 95 % interval {low:.4g} to {high:.4g} ({seeds})"
    return f"{compared}; claimed {comparison.relation} {border:g}"


def _name(quantity: Quantity, variants: dict[str, Variant]) -> str:
    figure = as_words(quantity.figure)
    if quantity.figure == "history":
        epoch = quantity.epoch or 0
        figure = f"{as_words(quantity.column or '')} at " + (f"epoch {epoch}" if epoch > 0 else "the last epoch")
    part = f", {as_words(quantity.part)}" if quantity.part else ""
    return f"{figure} of {variants[quantity.variant].title}{part}"


def _written(quantity: Quantity, values: Mapping[int, float]) -> str:
    found = spread(values.values())
    if found is None:
        return DASH
    if quantity.figure == "error":
        return spread_text(metric("accuracy"), found)
    if quantity.figure.endswith("_seconds"):
        return duration(found.mean) + (f" {PLUS_MINUS} {duration(found.std)}" if found.std else "")
    if _is_counted(quantity):
        return with_prefix(found.mean)
    if metric(quantity.figure).is_share:
        return spread_text(metric(quantity.figure), found)
    return f"{found.mean:.3g}" + (f" {PLUS_MINUS} {found.std:.2g}" if found.std is not None else "")


def tally(judged: Sequence[Judged]) -> str:
    """Count the verdicts in words, for a headline: `2 confirmed, 1 within noise`."""
    names: list[Verdict] = ["confirmed", "not confirmed", "within noise", "not tested"]
    counts = [(sum(entry.verdict == name for entry in judged), name) for name in names]
    return listed([f"{number} {name}" for number, name in counts if number])
