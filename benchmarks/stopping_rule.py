"""How often verdicts that look at the data several times are wrong, and how many seeds they need, on simulated studies.

`python benchmarks/stopping_rule.py` prints a table. A study has eight variants, of which two are
compared at 3, 6, 12 and 24 seeds until the claim "the first has a lower error" is decided, as `convatlas.decide` does.
Seeds differ by one point on average; how unlike the variants are in that is drawn from an inverse chi-squared
distribution (degrees of freedom in the first column; overview: 3.1, see the study pages' standard deviations), or one
of the two is ten times as noisy as the rest, as a net that often stays at chance. The 5,000 test images move a
difference by 0.25 points, and chance differs from image to image and seed to seed.
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np

from convatlas.reporting.statistics import LOOKS, estimate, fit_prior
from convatlas.reporting.verdicts import decided

POINT = 0.01
MARGIN = 2 * POINT
"""That of conf/scale/laptop.yaml."""
VARIANTS, IMAGES = 8, 250
IMAGE_ERROR = 0.25 * POINT
CHANCE = 0.3 * POINT
"""Standard error that the chance of single images gives the score of one seed."""
NOISES = {"alike": np.inf, "4": 4.0, "2": 2.0, "one is unstable": None}
EFFECTS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 6.0)


def simulate(freedom: float | None, effect: float, draws: np.random.Generator) -> tuple[str, int]:
    """Return the verdict on one simulated claim and the seeds it took; `effect` in points, against the claim."""
    variance = np.full(VARIANTS, POINT**2)
    if freedom is None:
        variance[0] *= 100
    elif np.isfinite(freedom):
        variance *= freedom / draws.chisquare(freedom, VARIANTS)
    image = draws.normal(0, IMAGE_ERROR * np.sqrt(IMAGES), IMAGES)
    parts = draws.normal(0, 1, (VARIANTS, max(LOOKS), 1)) * np.sqrt(variance)[:, None, None]
    parts = parts + draws.normal(0, CHANCE * np.sqrt(IMAGES), (VARIANTS, max(LOOKS), IMAGES))
    parts[0] += effect * POINT + image
    scores = parts.mean(axis=2)
    for seeds in LOOKS:
        # the other variants of a study stay at three seeds unless they are undecided themselves
        known = [seeds, seeds, *[LOOKS[0]] * (VARIANTS - 2)]
        variances = [float(scores[v, :n].var(ddof=1)) for v, n in enumerate(known)]
        prior = fit_prior(variances, [n - 1 for n in known])
        difference = parts[0, :seeds] - parts[1, :seeds]
        found = estimate(difference.mean(axis=1).tolist(), difference, prior.scaled(2) if prior else None)
        verdict = decided(found, "<", MARGIN)
        if verdict != "undecided":
            return verdict, seeds
    return "undecided", LOOKS[-1]


def main(studies: int) -> None:
    """Print the table."""
    right = {
        "confirmed": lambda effect: effect < 0,
        "refuted": lambda effect: effect > 0,
        "no difference": lambda effect: abs(effect) * POINT <= MARGIN,
    }
    draws = np.random.default_rng(0)
    print("| noise | effect, points | confirmed | refuted | no difference | undecided | wrong | mean seeds |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, freedom in NOISES.items():
        for effect in EFFECTS:
            found = [simulate(freedom, effect, draws) for _ in range(studies)]
            counts = Counter(verdict for verdict, _ in found)
            wrong = sum(n for verdict, n in counts.items() if verdict in right and not right[verdict](effect))
            shares = [counts[v] / studies for v in ("confirmed", "refuted", "no difference", "undecided")]
            seeds = np.mean([n for _, n in found])
            cells = [*(f"{share:.1%}" for share in (*shares, wrong / studies)), f"{seeds:.1f}"]
            print(f"| {name} | {effect:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
