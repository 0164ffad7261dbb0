"""Each variant against the first of its group: the same seeds and, where images have classes, the same test images.

In classification a pair of runs with one seed gives a difference for each test image: 1 where the variant alone is
right, -1 where the reference alone is, 0 else. Their mean is the difference of the accuracies. The interval is that of
`convatlas.reporting.statistics`, as for the claims; scores that have no parts by image enter it by seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from convatlas.core.metrics import Metric
from convatlas.reporting.statistics import Interval, estimate, has_width
from convatlas.reporting.study import Group, Variant
from convatlas.reporting.wording import DASH, count
from convatlas.studies.claims import Quantity

__all__ = ["Pair", "compare", "compare_two", "interval_text", "reference_of", "signed", "told_apart"]


@dataclass(frozen=True)
class Pair:
    """A variant against the reference.

    Attributes:
        variant: the one that is compared.
        metric: what is compared.
        seeds: number of seeds that both have; without any, the rest is None.
        difference: mean score of the variant less that of the reference, over those seeds.
        interval: 95 % interval of the difference; None for a single seed, whose noise is not known.
        only_variant: test images that the variant alone gets right, mean over the seeds.
        only_reference: those that the reference alone gets right. Both None where scores are compared by seed alone.
    """

    variant: Variant
    metric: Metric
    seeds: int
    difference: float | None
    interval: Interval | None
    only_variant: float | None
    only_reference: float | None

    @property
    def verdict(self) -> str:
        """Say on which side of zero the whole interval lies."""
        if self.interval is None:
            return DASH
        low, high = self.interval
        if not has_width(low, high):
            return "not told apart"
        return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def reference_of(group: Group) -> Variant | None:
    """Return the first variant of the plan that has a result, or None."""
    return next((variant for variant in group.variants if variant.runs), None)


def compare(group: Group) -> list[Pair]:
    """Compare every other variant of a group with its reference, in the order of the plan; nothing without results."""
    reference = reference_of(group)
    if reference is None:
        return []
    return [compare_two(group, variant, reference) for variant in group.variants if variant is not reference]


def told_apart(group: Group) -> str:
    """Say how many of all pairs of variants have different scores, and how far the lowest mean is from the highest."""
    finished = [variant for variant in group.variants if variant.runs]
    pairs = [compare_two(group, *both) for both in combinations(finished, 2)]
    known = [pair for pair in pairs if pair.interval is not None]
    if not known:
        return ""
    apart = sum(pair.verdict in ("higher", "lower") for pair in known)
    means = [found.mean for variant in finished if (found := variant.test(group.score)) and found.is_finite]
    reach = f"{(max(means) - min(means)) * group.metric.factor:.1f} {'points' if group.metric.is_share else ''}".strip()
    return (
        f"Of {count(len(known), 'pair')} of variants {apart} ({100 * apart / len(known):.0f} %) differ: the 95 % "
        f"interval of their difference excludes zero. From the lowest mean to the highest it is {reach}."
    )


def compare_two(group: Group, variant: Variant, reference: Variant) -> Pair:
    """Compare a variant of a group with another one."""
    score = Quantity(group.score, "")
    runs = [
        {run.seed: run for run in each.runs if run.seed in each.finite_tests(group.score)}
        for each in (variant, reference)
    ]
    pairs = [(run, runs[1][seed]) for seed, run in runs[0].items() if seed in runs[1]]
    if not pairs:
        return Pair(variant, group.metric, 0, None, None, None, None)
    values = [(run.test(group.score) or 0.0) - (other.test(group.score) or 0.0) for run, other in pairs]
    parts = [(run.parts(score), other.parts(score)) for run, other in pairs]
    same = [(a.values, b.values) for a, b in parts if a and b and np.array_equal(a.images, b.images)]
    prior = group.prior(group.score) if group.metric.is_share else None
    one, other = np.array(same).swapaxes(0, 1) if len(same) == len(pairs) else np.zeros((2, len(pairs), 0))
    by_images = one.size > 0
    found = estimate(values, one - other if by_images else None, prior.scaled(2) if prior else None)
    only = [float((a > b).sum(axis=1).mean()) if by_images else None for a, b in ((one, other), (other, one))]
    ends = found.interval() if found.seeds > 1 else None
    return Pair(variant, group.metric, found.seeds, found.value, ends, *only)


def interval_text(pair: Pair) -> str:
    """Write the ends of an interval."""
    return DASH if pair.interval is None else " to ".join(signed(end, pair.metric) for end in pair.interval)


def signed(value: float | None, metric: Metric) -> str:
    """Write a difference with its sign, in points where the metric is a share."""
    if value is None:
        return DASH
    digits = 2 if metric.is_share else 4
    text = f"{abs(value) * metric.factor:.{digits}f}"
    if not float(text):
        return text
    return f"{'+' if value > 0 else '−'}{text}"
