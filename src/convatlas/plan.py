"""`python -m convatlas.plan [study=a,b|all] [images=made,cifar10] [scale=laptop] [seeds=0,1,2]`: writes params.yaml.

`study=+densenet` adds to the plan that is there and `study=-densenet` takes away; scale, seeds and overrides stay.
params.yaml is what people read and edit, stages.yaml what dvc.yaml's templates read: both are committed, equal to what
this command writes without arguments.
Seeds and scale in it may be edited by hand, and `overrides` apply to every run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from convatlas.core.answers import Answering, answering
from convatlas.core.cli import read_options, run
from convatlas.core.composing import hydra_ready
from convatlas.core.config import DataConfig, describe
from convatlas.core.errors import UserError, near_matches
from convatlas.search.composing import searches_for
from convatlas.studies.calibration import CALIBRATED, choices
from convatlas.studies.params import FILE, STAGES, Plan, read_plan, write_plan
from convatlas.studies.planning import (
    NothingToReplaceError,
    check_costs,
    data_values,
    load_study,
    manifest_roots,
    planned_runs,
    study_names,
    template_values,
)

RUNS = Path("runs")
AsList = BeforeValidator(lambda value: value if isinstance(value, list) else [value])


class Options(Answering):
    """What the command line may say."""

    study: Annotated[list[str], AsList] = Field(default=["overview"])
    """Studies; `all` for all. With + or - before each they are added to the present plan or taken from it."""
    images: Annotated[list[str], AsList] = Field(default=["made"])
    """On which data at scale laptop: `made` are the study's own, others are in `conf/images`."""
    scale: str = "laptop"
    seeds: Annotated[list[int], AsList] | None = None
    overrides: Annotated[list[str], AsList] = Field(default=[])
    search: Annotated[list[str], AsList] = Field(default=[])
    """Architecture searches, each a stage; those whose findings a study trains are there by themselves."""


def make_plan(
    studies: Sequence[str],
    scale_name: str,
    seeds: Sequence[int] | None,
    overrides: Sequence[str],
    searches: Sequence[str] = (),
) -> dict[str, Any]:
    """Return a plan: what to run, and per run no more than dvc.yaml's templates need."""
    runs: dict[str, dict[str, str]] = {}
    models: list[dict[str, Any]] = []
    data: dict[str, DataConfig] = {}
    with hydra_ready():
        for name in studies:
            study, scale = load_study(name, scale_name)
            seeds = list(seeds if seeds is not None else scale.seeds)
            runs_of_study = planned_runs(study, scale, seeds, overrides)
            check_costs(study, scale, {run.config.variant: run.config for run in runs_of_study})
            for planned in runs_of_study:
                runs[planned.key] = template_values(planned.config)
                models.append(planned.config.model)
                data[planned.config.data.name] = planned.config.data
        found = searches_for(searches, models)
    for search in found.values():
        data[search.data.name] = search.data
    return {
        "scale": scale_name,
        "seeds": list(seeds or []),
        "overrides": list(overrides),
        "studies": list(studies),
        "data": {name: data_values(data[name]) for name in sorted(data)},
        "manifests": manifest_roots(data.values()),
        "searches": {name: {"data": search.data.name} for name, search in found.items()},
        "runs": runs,
    }


def on_images(studies: Sequence[str], images: Sequence[str], scale: str) -> list[str]:
    """Return the names of studies, `all` for all, on each kind of images, as `load_study` takes them.

    Of all studies, those whose data have none in their place are left out.
    """
    names = study_names() if list(studies) == ["all"] else studies
    found = []
    with hydra_ready():
        for kind in images:
            for name in names:
                planned = name if kind == "made" else f"{name}-{kind}"
                try:
                    load_study(planned, scale)
                except NothingToReplaceError:
                    if "all" not in studies:
                        raise
                else:
                    found.append(planned)
    return found


def changed_studies(studies: Sequence[str], options: Options) -> list[str]:
    """Add the studies with a + to those of a plan, and take those with a - away.

    Raises:
        UserError: one to be taken away is not there.
    """
    found = list(studies)
    for word in options.study:
        names = on_images([word[1:]], options.images, options.scale)
        for name in names:
            if word[0] == "+" and name not in found:
                found.append(name)
            elif word[0] == "-":
                if name not in found:
                    raise UserError(f"study={word}: the plan has no such study. {near_matches(name, found)}")
                found.remove(name)
    if not found:
        raise UserError(f"study={','.join(options.study)} leaves no study in the plan; keep one.")
    return found


def main() -> None:
    """Write params.yaml for the studies and the scale that the command line names."""
    options = read_options(Options, sys.argv[1:])
    if not options.study and not options.search:
        raise UserError("study= names no study; leave it out, or name one.")
    seeds_of: dict[str, list[int]] = {}
    if changes := [name for name in options.study if name[:1] in ("+", "-")]:
        if len(changes) < len(options.study):
            raise UserError("study= has names with and without a sign; give all of them + or -, or none.")
        before = read_plan(FILE)
        kept = {
            key: getattr(before, key) for key in ("scale", "seeds", "overrides") if key not in options.model_fields_set
        }
        searches = options.search or [*before.searches]
        options = options.model_copy(update={**kept, "search": searches})
        studies = changed_studies(before.studies, options)
        seeds_of = before.seeds_of
    else:
        studies = on_images(options.study, options.images, options.scale)
    plan = make_plan(studies, options.scale, options.seeds, options.overrides, options.search)
    if more := {key: seeds for key, seeds in seeds_of.items() if key in plan["runs"]}:
        plan["seeds_of"] = more
    try:
        Plan.model_validate(plan)
    except ValidationError as error:
        raise UserError(describe(error, "the command line")) from error
    keep_from_dvc(left_out(plan))
    write_plan(plan)
    with answering(options) as answer:
        answer(*said(plan))


def left_out(plan: Mapping[str, Any]) -> list[Path]:
    """Return what the stages of the plan before wrote that those of this one do not."""
    try:
        before = read_plan(FILE)
    except UserError:
        return []
    return [
        *(
            path
            for key in before.runs
            if key not in plan["runs"]
            for path in (RUNS / key, RUNS / f".finished/{key}.json")
        ),
        *(Path("data", "prepared", name) for name in before.data if name not in plan["data"]),
        *(Path("reports", "data", f"{name}.html") for name in before.data if name not in plan["data"]),
        *(Path("searches", name) for name in before.searches if name not in plan["searches"]),
    ]


def keep_from_dvc(paths: Iterable[Path]) -> None:
    """Let DVC take these files and folders for the user's own.

    `dvc exp run` and `dvc checkout` delete what DVC has linked and no stage writes any more, but nothing whose times
    have changed since.
    """
    for path in paths:
        file = path if path.is_file() else next((each for each in path.rglob("*") if each.is_file()), None)
        if file is not None:
            os.utime(file)


def said(plan: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return what a plan holds, in words and for programs."""
    studies, searches = plan["studies"], list(plan["searches"])
    open_ones = [name for name in studies if not choices(name)] if plan["scale"] == CALIBRATED else []
    searched = f", searches: {', '.join(searches)}" if searches else ""
    words = f"{FILE}, {STAGES}: {len(plan['runs'])} runs of {', '.join(studies)} at scale {plan['scale']}{searched}"
    if open_ones:
        words += (
            f"\nOptimiser and rate are the recipes' for {', '.join(open_ones)}: none were chosen on validation yet. "
            f"`python -m convatlas.calibrate study={','.join(open_ones)}` does it."
        )
    record = {"files": [str(FILE), str(STAGES)], "scale": plan["scale"], "studies": studies, "searches": searches}
    return words, {**record, "runs": list(plan["runs"]), "not_calibrated": open_ones}


if __name__ == "__main__":
    run(main)
