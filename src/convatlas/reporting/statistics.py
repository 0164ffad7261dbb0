"""Statistics of a report: intervals over seeds and test images, and how several looks share one rate of error.

Other seeds and other test images from the same source would both move a score, so both enter its interval, as crossed
random effects: analysis of variance of seeds by images, degrees of freedom after Satterthwaite as in Hillis 2007,
Statistics in Medicine 26, with the seeds for his readers and the images for his cases.

The variance over three seeds is a poor estimate. The variants of a study are nets trained on the same data by similar
recipes, and what their variances have in common is a prior for each: an inverse chi-squared distribution fitted to all
of them, which is worth as many seeds as they are alike (Smyth 2004, Statistical Applications in Genetics and Molecular
Biology 3, section 6; known as moderated t).

Seeds are added until a claim is decided, and every look at the data is a chance to err. The looks share the 5 %: each
has its part of them, whose sum bounds the probability that any of the intervals misses the true value (alpha spending,
Lan and DeMets 1983, Biometrika 70, with the parts added up, which holds whatever the looks have in common).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convatlas.core.statistics import Spread, spread

CONFIDENCE = 0.95
LOOKS = (3, 6, 12, 24)
"""Numbers of seeds at which a claim is judged; up to the first, between them and beyond the last, the next is meant."""
SHARES = (0.02, 0.01, 0.01, 0.01)
"""The part of the 5 % that each of them has; what is left of it is for a prior that does not fit."""
MOST_PRIOR_FREEDOM = 6.0
"""However alike the variances are, a prior counts for no more: the fit rests on few variants."""
OUTLIER = 0.4
"""Probability of so large a variance, below which the prior is not used."""
LEAST_FOR_PRIOR = 4
"""Variants with two seeds or more, below which there is no prior."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Prior:
    """Prior distribution of a variance, scaled inverse chi-squared: its value, and its degrees of freedom."""

    variance: float
    freedom: float

    def scaled(self, factor: float) -> Prior:
        """Return the prior of the variance of a multiple or a sum."""
        return replace(self, variance=self.variance * factor)


@dataclass(frozen=True)
class Estimate:
    """A compared value, and how far other seeds and other test images would move it.

    Attributes:
        value: mean over the seeds.
        seeds: how many.
        seed_variance: of a single seed.
        image_variance: of the mean, by the choice of the test images; 0 where single images are not known.
        seed_freedom: degrees of freedom of `seed_variance`.
    """

    value: float
    seeds: int
    seed_variance: float
    image_variance: float
    seed_freedom: float

    @property
    def variance(self) -> float:
        """The squared standard error of the value."""
        return self.seed_variance / self.seeds + self.image_variance

    @property
    def freedom(self) -> float:
        """Degrees of freedom of `variance`, after Satterthwaite."""
        by_seed = self.seed_variance / self.seeds
        return self.seed_freedom * (self.variance / by_seed) ** 2 if by_seed > 0 else math.inf

    @property
    def chance(self) -> float:
        """The probability of a value so far from 0, either way, if the true one were 0."""
        from scipy.special import ndtr, stdtr

        if self.seed_freedom == 0 or self.variance == 0:
            return 1.0
        distance = -abs(self.value) / math.sqrt(self.variance)
        return 2 * float(ndtr(distance) if math.isinf(self.freedom) else stdtr(self.freedom, distance))

    def reach(self, error_rate: float) -> float:
        """Return how far the interval of this rate of error reaches to each side."""
        return quantile(self.freedom, error_rate) * math.sqrt(self.variance)

    def interval(self, error_rate: float = 1 - CONFIDENCE) -> Interval:
        """Return the interval of this rate of error; everything where the variance of the seeds is not known."""
        if self.seed_freedom == 0:
            return -math.inf, math.inf
        reach = self.reach(error_rate)
        return self.value - reach, self.value + reach

    def with_seeds(self, seeds: int) -> Estimate:
        """Say what the estimate would be with so many seeds, if value and variances stayed as they are."""
        return replace(self, seeds=seeds, seed_freedom=self.seed_freedom + seeds - self.seeds)


def estimate(
    values: Sequence[float], images: NDArray[np.float64] | None = None, prior: Prior | None = None
) -> Estimate:
    """Estimate the mean of a value over seeds and test images, both being samples.

    Args:
        values: one for each seed.
        images: `(S, N)`, the part of each test image in the value of each seed: row means are the values, up to a
            constant. None where the value has no such parts.
        prior: of the variance over the seeds.
    """
    found = spread(values)
    assert found is not None
    variance, freedom = (0.0 if found.std is None else found.std**2), float(found.n - 1)
    if prior is not None and not is_outlier(variance, freedom, prior):
        together = prior.freedom + freedom
        variance = (prior.freedom * prior.variance + freedom * variance) / together
        freedom = together
    return Estimate(found.mean, found.n, variance, 0.0 if images is None else image_variance(images), freedom)


def is_outlier(variance: float, freedom: float, prior: Prior) -> bool:
    """Say whether a variance is too large to be one of those that the prior was fitted to, as of a net at chance."""
    from scipy.special import fdtrc

    return freedom > 0 and float(fdtrc(freedom, prior.freedom, variance / prior.variance)) < OUTLIER


def image_variance(parts: NDArray[np.float64]) -> float:
    """Return the variance of the mean of `(S, N)` parts by the choice of the N images, without that of the seeds."""
    seeds, images = parts.shape
    if images == 1:
        return 0.0
    by_image = float(parts.mean(axis=0).var(ddof=1)) / images
    if seeds == 1:
        return by_image  # what is an image's and what is chance cannot be told apart: the larger is taken
    residual = parts - parts.mean(axis=0) - parts.mean(axis=1, keepdims=True) + parts.mean()
    chance = float((residual**2).sum()) / ((seeds - 1) * (images - 1))
    return max(0.0, by_image - chance / (seeds * images))


def fit_prior(variances: Sequence[float], freedoms: Sequence[int]) -> Prior | None:
    """Fit what the variances of several variants have in common; None where they are too few.

    Args:
        variances: over the seeds of each variant; zeros are left out.
        freedoms: their seeds less one.
    """
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    pairs = [(v, d) for v, d in zip(variances, freedoms, strict=True) if v > 0 and d > 0]
    if len(pairs) < LEAST_FOR_PRIOR:
        return None
    variance, half = np.array([v for v, _ in pairs]), np.array([d / 2 for _, d in pairs])
    logs = np.log(variance) - digamma(half) + np.log(half)
    left = float(logs.var(ddof=1) - polygamma(1, half).mean())
    most = MOST_PRIOR_FREEDOM / 2
    prior_half = most if left <= polygamma(1, most) else float(brentq(lambda x: polygamma(1, x) - left, 1e-3, most))
    return Prior(float(np.exp(logs.mean() + digamma(prior_half) - np.log(prior_half))), 2 * prior_half)


def error_rate(seeds: int) -> float:
    """Return the share of the 5 % that belongs to a look at so many seeds."""
    return next((share for look, share in zip(LOOKS, SHARES, strict=True) if seeds <= look), SHARES[-1])


def has_width(low: float, high: float) -> bool:
    """Say whether an interval is wider than rounding errors; one that is not says nothing of a measured value."""
    return not math.isclose(low, high, rel_tol=1e-6, abs_tol=1e-12)


def quantile(freedom: float, error_rate: float = 1 - CONFIDENCE) -> float:
    """Return how many standard errors Student's interval of this rate of error reaches to each side."""
    from scipy.special import ndtri, stdtrit  # half a second faster to import than scipy.stats

    share = 1 - error_rate / 2
    return float(ndtri(share) if math.isinf(freedom) else stdtrit(freedom, share))


def not_significantly_worse(best: Spread, other: Spread) -> bool:
    """Say whether `other` lies within two standard errors of the difference from `best`.

    With three seeds that is a rough guide, no test; it keeps a table from praising noise. A single seed has no
    standard error and never counts.
    """
    difference = abs(best.mean - other.mean)
    return difference <= 2 * math.sqrt(best.squared_error + other.squared_error)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Say for each `(cost, score)` whether no other point is at least as good in both and better in one."""
    order = sorted(range(len(points)), key=lambda n: (points[n][0], -points[n][1]))
    on_front = [False] * len(points)
    best, best_cost = -math.inf, math.nan
    for number in order:
        cost, score = points[number]
        on_front[number] = score > best or (score == best and cost == best_cost)
        if score > best:
            best, best_cost = score, cost
    return on_front


def sampling_error(share: float, images: int) -> float:
    """Return the standard error of a share of right answers on so many independent test images (binomial)."""
    return math.sqrt(share * (1 - share) / images)


def survivors(chances: Sequence[float], error_rate: float = 1 - CONFIDENCE) -> list[bool]:
    """Say which of several findings remain if the probability of any error among them all is bounded.

    Holm 1979, Scandinavian Journal of Statistics 6.

    Args:
        chances: of each, the probability of what was found if there were nothing to find.
        error_rate: the bound.
    """
    order = sorted(range(len(chances)), key=lambda n: chances[n])
    remain = [False] * len(chances)
    for rank, number in enumerate(order):
        if chances[number] > error_rate / (len(chances) - rank):
            break
        remain[number] = True
    return remain
