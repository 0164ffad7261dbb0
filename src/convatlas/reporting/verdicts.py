"""Verdicts on a study's claims: confirmed, refuted, no difference or undecided, with the figures behind them.

A claim compares two sides. Each seed that all variants of the claim have gives one difference of the sides, and the
verdict looks at the interval of their mean over seeds and test images, see `convatlas.reporting.statistics`: wholly on
the claimed side it confirms, wholly on the other it refutes; within the margin that the study states beforehand there
is no difference that counts; otherwise more seeds are needed. An interval of no width says nothing of other seeds or
images, and so decides nothing. What is counted (parameters, multiply-adds, bytes) needs no interval and is a kind of
its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convatlas.core.metrics import as_words, metric
from convatlas.core.record import Speeds
from convatlas.core.statistics import spread
from convatlas.reporting.statistics import LOOKS, Estimate, Interval, Prior, error_rate, estimate, has_width
from convatlas.reporting.study import COSTS, Claim, CountedNet, SeedRun, Study, Variant
from convatlas.reporting.wording import DASH, PLUS_MINUS, count, duration, listed, spread_text, with_prefix
from convatlas.studies.claims import Comparison, Quantity, read_claim

Verdict = Literal["confirmed", "refuted", "no difference", "undecided", "not tested"]
VERDICTS: tuple[Verdict, ...] = ("confirmed", "refuted", "no difference", "undecided", "not tested")
Kind = Literal["counted", "measured"]
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Checked:
    """One comparison on our runs.

    Attributes:
        text: the comparison as the study states it.
        kind: whether its figures are counted or measured.
        verdict: what our runs say of it.
        figures: the quantities with mean and standard deviation, in words.
        interval: the compared value with its interval, in words; empty where it was not tested.
        reason: why it was not tested; empty otherwise.
        effect: left side less right side, mean over the seeds; None where it was not tested.
        low, high: the ends of its interval; None where it was not tested.
        margin: what counts for nothing; None where no difference is too small to count.
        chance: the probability of so large an effect, either way, if there were none; None for what is counted.
        seeds: that all its variants have.
        needed: how many would probably decide it; None where it is decided or no number would.
    """

    text: str
    kind: Kind
    verdict: Verdict
    figures: str = ""
    interval: str = ""
    reason: str = ""
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    chance: float | None = None
    seeds: int = 0
    needed: int | None = None


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict."""

    claim: Claim
    kind: Kind
    verdict: Verdict
    checked: tuple[Checked, ...]


def judge(study: Study) -> list[Judged]:
    """Judge every claim of a study, in its order, then its steps.

    Raises:
        UserError: a claim is not of the form of `convatlas.studies.claims`.
    """
    judged = []
    for claim in (*study.plan.claims, *(step.claim for step in study.plan.steps)):
        comparisons = [read_claim(text, f"the plan of the study {study.name}") for text in claim.holds]
        checked = tuple(_check(comparison, study, claim.margin) for comparison in comparisons)
        kind: Kind = "counted" if checked and all(part.kind == "counted" for part in checked) else "measured"
        judged.append(Judged(claim, kind, _together([part.verdict for part in checked]), checked))
    return judged


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    """A claim of several parts is confirmed if all are, and refuted if one is."""
    worst_first: list[Verdict] = ["refuted", "not tested", "undecided", "no difference"]
    for verdict in worst_first:
        if verdict in verdicts:
            return verdict
    return "confirmed" if verdicts else "not tested"


def _check(comparison: Comparison, study: Study, margin: float | None) -> Checked:
    quantities = comparison.quantities()
    if quantities[0].variant in study.plan.counted:
        return _count(comparison, study.plan.counted)
    variants = {variant.key: variant for variant in study.variants}
    kind: Kind = "counted" if all(map(is_counted, quantities)) else "measured"
    if unknown := [q.variant for q in quantities if q.variant not in variants]:
        reason = f"the plan has no variant {unknown[0]}"
        return Checked(comparison.text, kind, "not tested", reason=reason)
    runs = {q: {run.seed: run for run in variants[q.variant].runs if run.value(q) is not None} for q in quantities}
    values = {q: {seed: run.value(q) or 0.0 for seed, run in found.items()} for q, found in runs.items()}
    figures = "; ".join(f"{_name(q, variants)} {_written(q, values[q])}" for q in quantities)
    common = sorted(set.intersection(*(set(found) for found in values.values())))

    def not_tested(reason: str) -> Checked:
        return Checked(comparison.text, kind, "not tested", figures, reason=reason, seeds=len(common))

    if missing := [q for q in quantities if not values[q]]:
        command = f"; `convatlas measure run=runs/{study.name} record=true` measures it"
        hint = command if missing[0].figure in Speeds.Net.FIGURES else ""
        return not_tested(f"no run has {_name(missing[0], variants)}{hint}")
    if len(common) < (1 if kind == "counted" else 2):
        verb = "is" if len(common) == 1 else "are"
        return not_tested(f"it needs two seeds that all its variants have; there {verb} {len(common)}")
    sides = [comparison.sides({q: found[seed] for q, found in values.items()}) for seed in common]
    differences = [left - right for left, right in sides]
    if not all(map(math.isfinite, differences)):
        return not_tested("a value is not finite")
    if kind == "counted":
        low = high = effect = differences[0]
        verdict, needed, chance = _side(comparison.relation, low, high) or "undecided", None, None
    else:
        slopes = comparison.slopes({q: math.fsum(v[s] for s in common) / len(common) for q, v in values.items()})
        parts = _parts(runs, slopes, common)
        found = estimate(differences, parts, _prior(study, slopes, variants))
        margin = _default_margin(comparison, study.plan.margin) if margin is None else margin
        effect, (low, high) = found.value, found.interval(error_rate(found.seeds))
        verdict, chance = decided(found, comparison.relation, margin), found.chance
        needed = seeds_needed(found, comparison.relation, margin) if verdict == "undecided" else None
    text = _interval_text(comparison, sides, (low, high), kind)
    if verdict == "undecided":
        text += _why_undecided(needed, has_width(low, high))
    return Checked(
        comparison.text,
        kind,
        verdict,
        figures,
        text,
        effect=effect,
        low=low,
        high=high,
        margin=margin,
        chance=chance,
        seeds=len(common),
        needed=needed,
    )


def _count(comparison: Comparison, nets: Mapping[str, CountedNet]) -> Checked:
    """Check a comparison of nets that are counted and not trained."""
    values = {quantity: nets[quantity.variant].costs.get(quantity.figure) for quantity in comparison.quantities()}
    known = {quantity: value for quantity, value in values.items() if value is not None}
    if unknown := [quantity.figure for quantity in values if quantity not in known]:
        return Checked(comparison.text, "counted", "not tested", reason=f"{unknown[0]} is no cost that is counted")
    left, right = comparison.sides(known)
    figures = "; ".join(
        f"{as_words(q.figure)} of {nets[q.variant].title} {with_prefix(value)}" for q, value in known.items()
    )
    effect = left - right
    verdict = _side(comparison.relation, effect, effect) or "undecided"
    text = _interval_text(comparison, [(left, right)], (effect, effect), "counted")
    return Checked(comparison.text, "counted", verdict, figures, text, "", effect, effect, effect)


def decided(found: Estimate, relation: str, margin: float | None) -> Verdict:
    """Return the verdict on `left relation right`.

    Args:
        found: left side less right side.
        relation: `<`, `<=`, `>` or `>=`.
        margin: what counts for nothing; None where no difference is too small to count.
    """
    low, high = found.interval(error_rate(found.seeds))
    if not has_width(low, high):
        return "undecided"
    side = _side(relation, low, high)
    if side is None and margin is not None and -margin <= low and high <= margin:
        return "no difference"
    return side or "undecided"


def seeds_needed(found: Estimate, relation: str, margin: float | None) -> int | None:
    """Return the number of seeds that would decide if value and variances stayed as they are; None where none would."""
    more = [*LOOKS, *range(2 * LOOKS[-1], MOST_SEEDS, LOOKS[-1])]
    later = (seeds for seeds in more if seeds > found.seeds)
    return next((n for n in later if decided(found.with_seeds(n), relation, margin) != "undecided"), None)


def _side(relation: str, low: float, high: float) -> Verdict | None:
    """Say on which side of the border an interval of the difference lies wholly; None where it lies across."""
    if relation in (">", ">="):
        low, high = -high, -low
    touches = relation in ("<=", ">=")
    if high < 0 or (touches and high <= 0):
        return "confirmed"
    if low > 0 or (low == high == 0 and not touches):
        return "refuted"
    return None


def is_counted(quantity: Quantity) -> bool:
    """Say whether a quantity is counted and not measured, so that one seed is enough."""
    return quantity.figure in COSTS


def _is_score(quantity: Quantity) -> bool:
    """Say whether a quantity is a test metric between 0 and 1."""
    return quantity.figure == "error" or metric(quantity.figure).is_share


def _default_margin(comparison: Comparison, margin: float) -> float | None:
    """Return the plan's margin for sums and differences of scores; anything else has none unless its claim does."""
    return margin if comparison.is_linear and all(map(_is_score, comparison.quantities())) else None


def _parts(
    runs: Mapping[Quantity, Mapping[int, SeedRun]], slopes: Mapping[Quantity, float], seeds: Sequence[int]
) -> NDArray[np.float64] | None:
    """Return the part of each test image in the difference, `(S, N)`; None where not all were tested on the same."""
    of_images = {q: [runs[q][seed].parts(q) for seed in seeds] for q in slopes if not is_counted(q)}
    known = [part for parts in of_images.values() for part in parts if part is not None]
    if not known or any(not np.array_equal(part.images, known[0].images) for part in known):
        return None
    nothing = np.zeros(known[0].images.shape[-1])
    rows = (
        slopes[q] * np.stack([nothing if part is None else part.values for part in parts])
        for q, parts in of_images.items()
    )
    return np.sum([*rows], axis=0)


def _prior(study: Study, slopes: Mapping[Quantity, float], variants: Mapping[str, Variant]) -> Prior | None:
    """Return the prior of the variance of the difference, where it compares scores of different variants."""
    measured = [quantity for quantity in slopes if not is_counted(quantity)]
    if not all(map(_is_score, measured)) or len({q.variant for q in measured}) < len(measured):
        return None
    priors = [study.group_of(variants[q.variant]).prior(q.figure) for q in measured]
    known = [prior for prior in priors if prior is not None]
    if len(known) < len(priors):
        return None
    variance = sum(slopes[q] ** 2 * prior.variance for q, prior in zip(measured, known, strict=True))
    return Prior(variance, min(prior.freedom for prior in known))


def _why_undecided(needed: int | None, has_a_width: bool) -> str:
    if not has_a_width:
        return "; all seeds have the same difference, so its noise is not known"
    if needed is None:
        return f"; fewer than {MOST_SEEDS} seeds would probably not decide it, with these test images"
    return f"; {needed} seeds would probably decide it"


def _interval_text(comparison: Comparison, sides: Sequence[tuple[float, float]], ends: Interval, kind: Kind) -> str:
    """Write the left side against a printed number, or the difference of two measured sides."""
    low, high = ends
    if comparison.right_is_a_number:
        name, value, border = "left side", sides[0][1], sides[0][1]
        low, high = low + value, high + value
        middle = math.fsum(left for left, _ in sides) / len(sides)
    else:
        name, border = "difference", 0.0
        middle = math.fsum(left - right for left, right in sides) / len(sides)
    claimed = f"; claimed {comparison.relation} {border:g}"
    if kind == "counted":
        return f"{name} {middle:.4g}{claimed}"
    rate = f"{100 * (1 - error_rate(len(sides))):g} % interval"
    return f"{name} {middle:.4g}, {rate} {low:.4g} to {high:.4g} ({count(len(sides), 'seed')}){claimed}"


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
    if quantity.figure in Speeds.Net.FIGURES or quantity.figure.endswith("_seconds"):
        return duration(found.mean) + (f" {PLUS_MINUS} {duration(found.std)}" if found.std else "")
    if is_counted(quantity):
        return with_prefix(found.mean)
    if metric(quantity.figure).is_share:
        return spread_text(metric(quantity.figure), found)
    return f"{found.mean:.3g}" + (f" {PLUS_MINUS} {found.std:.2g}" if found.std is not None else "")


def tally(judged: Sequence[Judged]) -> str:
    """Count the verdicts in words, for a headline: `2 confirmed and 1 undecided`."""
    counts = [(sum(entry.verdict == name for entry in judged), name) for name in VERDICTS]
    return listed([f"{number} {name}" for number, name in counts if number])


def verdict_bar(judged: Sequence[Judged]) -> list[tuple[str, float, float]]:
    """Return the verdicts of a study as stretches of a bar: which, where it begins, and how long it is, of 100."""
    stretches: list[tuple[str, float, float]] = []
    start = 0.0
    for name in VERDICTS:
        share = 100 * sum(entry.verdict == name for entry in judged) / max(1, len(judged))
        if share:
            stretches.append((name, start, share))
        start += share
    return stretches
