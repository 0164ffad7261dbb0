"""`python -m convatlas.decide [minutes=60] [most_seeds=24]`: adds seeds to the plan until its claims are decided.

First `dvc repro` brings the plan up to date. Then each claim that is undecided gets the seeds of its next look (3, 6,
12 or 24, see `convatlas.reporting.statistics`), only for the variants that it names; they are written into params.yaml
under `seeds_of` and trained by `dvc repro`. It ends when nothing is undecided, when the rest have all the seeds that
are allowed, or before a training that would not fit into the minutes. Finished seeds are never trained again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from convatlas.core.cli import read_options, run
from convatlas.core.config import Section
from convatlas.core.errors import UserError
from convatlas.core.files import read_yaml, write_yaml
from convatlas.core.processes import run_program
from convatlas.core.record import Speeds
from convatlas.reporting.reading import read_studies
from convatlas.reporting.statistics import LOOKS
from convatlas.reporting.study import Study, Variant
from convatlas.reporting.verdicts import Judged, judge, tally
from convatlas.reporting.wording import count
from convatlas.studies.claims import read_claim
from convatlas.studies.params import FILE, HEADER, read_plan

PLAN, RUNS = Path("plan"), Path("runs")


class Options(Section):
    """What the command line may say."""

    minutes: Annotated[float, Field(gt=0)] | None = None
    """After which no further training begins; null sets no limit."""
    most_seeds: Annotated[int, Field(ge=LOOKS[0])] = LOOKS[-1]


@dataclass(frozen=True)
class Request:
    """More seeds for one variant, and about how long they train."""

    key: str
    seeds: tuple[int, ...]
    seconds: float


def main() -> None:
    """Add seeds until every claim of the plan is decided, or the limits are reached."""
    options = read_options(Options, sys.argv[1:])
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    read_plan(FILE)
    repro([])
    added = False
    while True:
        studies = [(study, judge(study)) for study in read_studies(PLAN, RUNS)]
        wanted = requests(studies, options.most_seeds)
        fitting = [*within(wanted, None if end is None else end - time.monotonic())]
        print_standing(studies, len(wanted))
        if not fitting:
            if wanted and options.minutes is not None and not added:
                raise UserError(
                    f"minutes={options.minutes:g}: what is left of it is less than the next seeds take (about "
                    f"{wanted[0].seconds / 60:.1f} minutes for {wanted[0].key}); what is decided stays."
                )
            return
        added = True
        add_seeds({each.key: each.seeds for each in fitting})
        repro([f"train@{each.key}" for each in fitting])
        repro([])


def requests(studies: Iterable[tuple[Study, Sequence[Judged]]], most: int) -> list[Request]:
    """Return the variants that need more seeds for a claim that is undecided, the first claims first."""
    wanted: dict[str, Request] = {}
    for study, claims in studies:
        variants = {variant.key: variant for variant in study.variants}
        for judged in claims:
            for name, seeds in _next_look(judged, variants, most):
                key = f"{study.name}/{name}"
                if key not in wanted or len(seeds) > len(wanted[key].seeds):
                    wanted[key] = Request(key, seeds, _seconds(variants[name], seeds))
    return list(wanted.values())


def _next_look(judged: Judged, variants: Mapping[str, Variant], most: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the variants of an undecided claim that lack seeds for its next look, with all the seeds they then have."""
    if judged.verdict != "undecided":
        return
    for part in judged.checked:
        look = next((look for look in LOOKS if part.seeds < look <= most), None)
        quantities = read_claim(part.text, "the plan").quantities()
        if part.verdict != "undecided" or look is None or any(q.figure in Speeds.Net.FIGURES for q in quantities):
            continue  # what `convatlas measure` takes, no training adds to
        for key in dict.fromkeys(quantity.variant for quantity in quantities):
            seeds = variants[key].seeds
            unused = (seed for seed in range(len(seeds) + look) if seed not in seeds)
            more = tuple(next(unused) for _ in range(look - len(seeds)))
            if more and not variants[key].failures:
                yield key, (*seeds, *more)


def _seconds(variant: Variant, seeds: Sequence[int]) -> float:
    """Estimate how long the seeds train that a variant does not have yet."""
    taken = variant.seconds("train_seconds")
    return (taken.mean if taken else 0.0) * (len(seeds) - len(variant.runs))


def within(wanted: Iterable[Request], seconds: float | None) -> Iterator[Request]:
    """Yield the first of the requests that fit into the time that is left; all without a limit."""
    for request in wanted:
        if seconds is not None:
            seconds -= request.seconds
            if seconds < 0:
                return
        yield request


def add_seeds(seeds: Mapping[str, Sequence[int]]) -> None:
    """Write the seeds of single runs into params.yaml, beside those that are there."""
    values = read_yaml(FILE, "run `python -m convatlas.plan`.")
    values["seeds_of"] = {**values.get("seeds_of", {}), **{key: list(each) for key, each in seeds.items()}}
    write_yaml(FILE, values, HEADER)


def repro(targets: Sequence[str]) -> None:
    """Run `dvc repro`; of stages that fail the others still run.

    Raises:
        UserError: a stage failed.
    """
    if run_program([sys.executable, "-m", "dvc", "repro", *targets]):
        raise UserError("`dvc repro` ended with an error, see above; what is decided stays, and this command goes on.")


def print_standing(studies: Iterable[tuple[Study, Sequence[Judged]]], wanted: int) -> None:
    """Print how many claims have which verdict."""
    judged = [each for _, claims in studies for each in claims]
    print(f"{tally(judged)}; {count(wanted, 'variant')} to be trained with more seeds.", flush=True)


if __name__ == "__main__":
    run(main, interrupted="The same command goes on: finished seeds stay.")
