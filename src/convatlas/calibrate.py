"""`python -m convatlas.calibrate [study=overview] [images=made,cifar10]`: chooses optimiser and rate of every variant.

Each variant of a study trains with each choice of the grid of `conf/scale/laptop.yaml`, with the same steps and a seed
that no study uses; the best validation score decides, and the test split is not read. What was tried stands in
`conf/calibration/<study>.yaml` and is taken from there by every plan; what stands there is not tried again, unless the
variant has changed or `anew=true` says so. The same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

from pydantic import Field

from convatlas.core.cli import GOES_ON, read_options, run
from convatlas.core.composing import hydra_ready
from convatlas.core.config import RunConfig, Section
from convatlas.core.digests import digest
from convatlas.core.errors import UserError
from convatlas.core.files import write_yaml
from convatlas.core.imports import quick_imports
from convatlas.plan import AsList, on_images
from convatlas.prepare import prepare_as_planned
from convatlas.studies.calibration import CALIBRATED, Calibration, Tried, calibration_file, read_calibration
from convatlas.studies.planning import PlannedRun, Scale, Study, load_study, planned_runs

WORK = Path(".work", "calibration")
HEADER = "Written by `python -m convatlas.calibrate`: validation scores of every variant, and what was chosen by them."


class Options(Section):
    """What the command line may say."""

    study: Annotated[list[str], AsList] = Field(default=["overview"])
    images: Annotated[list[str], AsList] = Field(default=["made"])
    anew: bool = False
    """Try all choices once more."""


def main() -> None:
    """Choose for the studies that the command line names; names that plan gives, with `-cifar10`, are taken as well."""
    options = read_options(Options, sys.argv[1:])
    for name in on_images(options.study, options.images, CALIBRATED):
        calibrate(name, anew=options.anew)


def calibrate(name: str, *, anew: bool) -> None:
    """Choose optimiser and rate of every variant of a study that is compared with another.

    Raises:
        UserError: a variant cannot be trained, or diverges with every choice.
    """
    with hydra_ready():
        study, scale = load_study(name, CALIBRATED)
        recorded = read_calibration(name)
        seed, before = recorded.seed, {} if anew else recorded.variants
        wanted = {run.config.variant: run for run in compared(study, planned_runs(study, bare(scale), [seed], ()))}
        choices = [" ".join(choice) for choice in scale.grid]
        tried = Calibration(
            seed=seed, variants={key: still_valid(before.get(key), run, choices) for key, run in wanted.items()}
        )
        trials = [
            (key, choice, trial(study, scale, key, number, seed))
            for key in wanted
            for number, choice in enumerate(choices)
            if choice not in tried.variants[key].scores
        ]
    for data in {config.data.name: config.data for _, _, config in trials}.values():
        prepare_as_planned(data, Path("reports", "data", f"{data.name}.html"))
    with quick_imports():
        from convatlas.training.calibration import validation_scores

    with closing(validation_scores([config for _, _, config in trials])) as found:
        for number, score in found:
            key, choice, _ = trials[number]
            scores = {**tried.variants[key].scores, choice: score.value}
            in_order = {choice: scores[choice] for choice in choices if choice in scores}
            chosen = best(scores, higher_is_better=score.higher_is_better) if len(scores) == len(choices) else None
            tried.variants[key] = Tried(config=tried.variants[key].config, scores=in_order, chosen=chosen)
            write_yaml(calibration_file(name), tried.plain(), HEADER)
            print(f"{name}/{key}  {choice}  {'diverged' if score.value is None else f'{score.value:.4f}'}", flush=True)
    if lost := [key for key, each in tried.variants.items() if each.chosen is None]:
        raise UserError(
            f"{name}/{lost[0]} diverged with every choice of conf/scale/{CALIBRATED}.yaml; add a lower rate."
        )
    write_yaml(calibration_file(name), tried.plain(), HEADER)
    print(f"{calibration_file(name)}: {len(tried.variants)} variants")


def compared(study: Study, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the runs that share task and data with another, begin with random weights, and state no optimiser."""
    fresh = [run for run in runs if run.config.weights is None and not states_its_own(study, run.config.variant)]
    groups = Counter((run.config.data.task, run.config.data.name) for run in fresh)
    return [run for run in fresh if groups[run.config.data.task, run.config.data.name] > 1]


def states_its_own(study: Study, variant: str) -> bool:
    """Say whether a variant itself says with which optimiser or rate it trains."""
    found = study.variants[variant]
    own = ("recipe.optimizer", "recipe/optimizer")
    return any(each.lstrip("+~").startswith(own) for each in (*found.overrides, *found.laptop))


def bare(scale: Scale) -> Scale:
    """Return a scale by which a plan takes no choices."""
    return scale.model_copy(update={"grid": []})


def trial(study: Study, scale: Scale, key: str, number: int, seed: int) -> RunConfig:
    """Compose the training of a variant with one choice of the grid."""
    alone = study.model_copy(update={"variants": {key: study.variants[key]}})
    (run,) = planned_runs(alone, bare(scale), [seed], [*scale.grid[number], "tracking=none"])
    return run.config.model_copy(update={"work_dir": WORK / study.name / key / str(number)})


def identity(config: RunConfig) -> str:
    """Return the digest of what decides a training beside the choice: net, data and recipe.

    An option that came later counts only where it is used.
    """
    plain = config.plain()
    recipe = config.recipe.model_dump(mode="json", exclude_defaults=True)
    return digest([plain["model"], plain["data"], recipe])[:16]


def still_valid(tried: Tried | None, run: PlannedRun, choices: Sequence[str]) -> Tried:
    """Return what was tried with this configuration and these choices; nothing is chosen while some are missing."""
    config = identity(run.config)
    if tried is None or tried.config != config:
        return Tried(config=config)
    scores = {choice: tried.scores[choice] for choice in choices if choice in tried.scores}
    return Tried(config=config, scores=scores, chosen=tried.chosen if list(scores) == list(choices) else None)


def best(scores: Mapping[str, float | None], *, higher_is_better: bool) -> str | None:
    """Return the choice with the best score, the first of equals; None where all diverged."""
    finite = {choice: score for choice, score in scores.items() if score is not None}
    return (max if higher_is_better else min)(finite, key=lambda choice: finite[choice], default=None)


if __name__ == "__main__":
    run(main, "calibrate", interrupted=GOES_ON)
