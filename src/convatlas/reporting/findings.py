"""What was learnt: every comparison of every claim with its verdict, on each kind of images, as records and as a table.

A record is what `docs/studies/verdicts.json` and `claims.json` hold. Records outlive the runs: those of one sitting
replace the ones of the same study and images, and the others stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from convatlas.core.metrics import as_words
from convatlas.reporting.origin import origin
from convatlas.reporting.score_plots import IntervalPlot, Scale
from convatlas.reporting.statistics import CONFIDENCE, survivors
from convatlas.reporting.study import Study
from convatlas.reporting.verdicts import VERDICTS, Checked, Kind, Verdict, judge
from convatlas.reporting.wording import DASH, count, duration, listed
from convatlas.studies.claims import read_claim

__all__ = ["Finding", "Row", "findings", "on_images", "plot", "record", "rows", "summary", "words"]

REACH = 0.2
"""Where the drawn scale ends, to each side: 20 points."""
WIDTH = 132
"""Of the drawing, in pixels; the template has the same."""


class Finding(BaseModel):
    """One comparison of a claim, on one kind of images.

    Attributes:
        study: its name, the same for all images.
        images: `made`, or one of `conf/images`.
        claim: what the lecture says.
        comparison: by which figures our runs check it; empty where none can.
        kind: whether these are counted or measured.
        verdict: of this comparison.
        effect: left side less right side, mean over the seeds; None where it was not tested, as the other figures.
        low, high: the ends of its interval.
        margin: what counts for nothing; None where no difference is too small to count.
        chance: the probability of so large an effect, either way, if there were none; None for what is counted.
        seeds: how many.
        needed: how many would probably decide it; None where it is decided or no number would.
        seconds: of training, all seeds of all its variants together.
        commit: of the code that trained them.
    """

    model_config = ConfigDict(frozen=True)

    study: str
    images: str
    claim: str
    comparison: str
    kind: Kind
    verdict: Verdict
    effect: float | None
    low: float | None
    high: float | None
    margin: float | None
    chance: float | None
    seeds: int
    needed: int | None
    seconds: float
    commit: str | None

    @property
    def in_favour(self) -> tuple[float, float, float] | None:
        """Effect and ends of its interval, positive where the claim is right; None where it was not tested."""
        if self.effect is None or self.low is None or self.high is None:
            return None
        less = read_claim(self.comparison, "the records of verdicts").relation in ("<", "<=")
        return (-self.effect, -self.high, -self.low) if less else (self.effect, self.low, self.high)

    @property
    def in_points(self) -> bool:
        """Whether the effect is a difference of scores between 0 and 1."""
        return self.kind == "measured" and self.margin is not None


@dataclass(frozen=True)
class Row:
    """One comparison with what each kind of images says of it, in the order of the first record."""

    study: str
    claim: str
    comparison: str
    kind: Kind
    by_images: dict[str, Finding]


def findings(study: Study) -> list[Finding]:
    """Return what a study found, comparison by comparison; a claim without any has one that is not tested."""
    commits = [commit for commit, _ in origin(study).commits]
    variants = {variant.key: variant for variant in study.variants}

    def seconds(part: Checked) -> float:
        if not part.text:
            return 0.0
        names = {quantity.variant for quantity in read_claim(part.text, study.name).quantities()}
        taken = (run.seconds("train_seconds") or 0.0 for name in names & set(variants) for run in variants[name].runs)
        return round(sum(taken), 1)

    return [
        Finding(
            study=study.name.partition("-")[0],
            images=study.plan.images,
            claim=judged.claim.says,
            comparison=part.text,
            kind=part.kind,
            verdict=part.verdict,
            effect=part.effect,
            low=part.low,
            high=part.high,
            margin=part.margin,
            chance=part.chance,
            seeds=part.seeds,
            needed=part.needed,
            seconds=seconds(part),
            commit=listed(commits) or None,
        )
        for judged in judge(study)
        for part in judged.checked or (Checked("", judged.kind, "not tested"),)
    ]


def rows(found: Iterable[Finding]) -> list[Row]:
    """Put the records of one comparison into one row."""
    by_comparison: dict[tuple[str, str, str], Row] = {}
    for each in found:
        key = (each.study, each.claim, each.comparison)
        row = by_comparison.setdefault(key, Row(*key, each.kind, {}))
        row.by_images[each.images] = each
    return list(by_comparison.values())


def summary(found: Sequence[Finding]) -> list[str]:
    """Say in sentences how many measured comparisons are decided on each kind of images, and how many may be wrong."""
    lines = []
    for images in dict.fromkeys(each.images for each in found):
        measured = [each for each in found if each.images == images and each.kind == "measured"]
        tested = [each for each in measured if each.verdict != "not tested"]
        if not tested:
            continue
        decided = [each for each in tested if each.verdict != "undecided"]
        sides = [each for each in tested if each.verdict in ("confirmed", "refuted")]
        remain = sum(survivors([1.0 if each.chance is None else each.chance for each in sides]))
        lines.append(
            f"{on_images(images)}: of {count(len(tested), 'measured comparison')} {len(decided)} are decided "
            f"({100 * len(decided) / len(tested):.0f} %): {_tally(tested)}. Each verdict errs with a probability of at "
            f"most {100 * (1 - CONFIDENCE):.0f} %, so about {(1 - CONFIDENCE) * len(tested):.1f} of all may be wrong; "
            f"of the {len(sides)} confirmed or refuted {remain} remain if no single error is allowed for (Holm)."
        )
    if counted := [each for each in found if each.kind == "counted"]:
        lines.append(f"Counted, not measured: {_tally(counted)}.")
    return lines


def on_images(images: str) -> str:
    """Name a kind of images, those of the studies themselves too."""
    return "The studies' own images" if images == "made" else as_words(images)


def _tally(found: Sequence[Finding]) -> str:
    counts = Counter(each.verdict for each in found)
    return listed([f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]])


def plot(found: Finding) -> IntervalPlot | None:
    """Place a finding on the scale that all share: right of the middle where the claim is right.

    None where it was not tested, or is no difference of scores.
    """
    ends = found.in_favour
    if ends is None or not found.in_points:
        return None
    effect, low, high = ends
    place: Callable[[float], float] = Scale(-REACH, REACH, WIDTH).place
    cut = tuple(side for side, beyond in (("low", low < -REACH), ("high", high > REACH)) if beyond)
    return IntervalPlot(place(0.0), place(effect), place(low), place(high), cut, words(found))


def words(found: Finding) -> str:
    """Write the effect with its interval, seeds and cost; in points in the claim's favour where it is one of scores."""
    ends = found.in_favour
    if ends is None:
        return DASH
    if found.kind == "counted":
        return f"difference of the sides {found.effect:.4g}"
    if found.in_points:
        effect, low, high = (f"{100 * end:+.1f}".replace("-", "−") for end in ends)
        text = f"{effect} points ({low} to {high})"
    else:
        text = f"difference of the sides {found.effect:.3g} ({found.low:.3g} to {found.high:.3g})"
    return f"{text}, {count(found.seeds, 'seed')}, {duration(found.seconds)}"


def record(found: Finding) -> dict[str, Any]:
    """Return plain values, six significant digits."""
    values = found.model_dump()
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
