"""`python -m convatlas.resolve`: from params.yaml to plan/, the full configuration of every stage, run and study.

DVC does not compose Hydra nor read imports; this stage does both. Each other stage depends on its own file in plan/,
with its whole configuration and the fingerprints of the code that it imports. So an edit under conf/ or src/ repeats
exactly what it changes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from convatlas.atlas.keeping import fingerprints
from convatlas.atlas.lineage import read_lineage
from convatlas.atlas.nets import read_nets
from convatlas.core.cli import read_options, run
from convatlas.core.composing import hydra_ready
from convatlas.core.config import DataConfig, Section
from convatlas.core.digests import digest
from convatlas.core.errors import UserError
from convatlas.core.files import write_yaml
from convatlas.core.folders import written_folder
from convatlas.core.source_code import atlas_code, page_code, prepare_code, report_code, run_code
from convatlas.search.composing import planned_search, searches_for
from convatlas.studies.params import FILE, STAGES, Plan, read_plan
from convatlas.studies.planning import (
    FINISHED,
    TRACKING,
    check_costs,
    data_plan,
    data_values,
    load_study,
    manifest_roots,
    planned_runs,
    study_file,
    template_values,
    tracking_plan,
)

PLAN = Path("plan")


def main() -> None:
    """Write plan/."""
    read_options(Section, sys.argv[1:])
    plan = read_plan(FILE)
    with written_folder(PLAN, "resolve", "folder") as partial:
        _check_listed(plan, _write(plan, partial))
    _forget_others(plan.runs)
    print(f"{PLAN}/: {len(plan.runs)} runs")


def _check_listed(plan: Plan, written: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError unless stages.yaml lists for DVC's templates what its studies and scale give."""
    for section, found in written.items():
        listed = getattr(plan, section)
        if found != listed:
            first = min(key for key in {*found, *listed} if found.get(key) != listed.get(key))
            raise UserError(
                f"{STAGES} does not list the {section} that the studies and scale of {FILE} give (first difference: "
                f"{first}); run `{plan.command}`."
            )


def _write(plan: Plan, folder: Path) -> dict[str, dict[str, Any]]:
    """Write every file of the plan below `folder`, and return what stages.yaml has to list."""
    runs: dict[str, dict[str, str]] = {}
    models: list[dict[str, Any]] = []
    data: dict[str, DataConfig] = {}
    with hydra_ready():
        for name in plan.studies:
            study, scale = load_study(name, plan.scale)
            planned = planned_runs(study, scale, plan.seeds, plan.overrides, plan.seeds_of)
            check_costs(study, scale, {run.config.variant: run.config for run in planned})
            for each in planned:
                config = each.config.plain()
                tracking = {section: config.pop(section) for section in TRACKING}
                write_yaml(folder / tracking_plan(each.key).relative_to(PLAN), tracking)
                write_yaml(folder / f"{each.key}.yaml", {"config": config, **run_code(each.config).plain()})
                runs[each.key] = template_values(each.config)
                models.append(each.config.model)
                data[each.config.data.name] = each.config.data
            alone = plan.model_copy(update={"studies": [name], "searches": {}})
            command = f"{alone.command} && dvc repro"
            write_yaml(folder / f"{name}.yaml", study_file(study, scale, plan.seeds, planned, command))
        searches = searches_for(plan.searches, models)
        for name, search in searches.items():
            write_yaml(folder / "searches" / f"{name}.yaml", planned_search(search))
            data[search.data.name] = search.data
        for name in data:
            write_yaml(folder / data_plan(name).relative_to(PLAN), _preparation(name))
    write_yaml(folder / "code" / "report.yaml", report_code().plain())
    write_yaml(folder / "code" / "atlas.yaml", _atlas())
    return {
        "runs": runs,
        "searches": {name: {"data": search.data.name} for name, search in searches.items()},
        "data": {name: data_values(each) for name, each in data.items()},
        "manifests": manifest_roots(data.values()),
    }


def _atlas() -> dict[str, Any]:
    """Return what decides the atlas beside the plan and the runs: its code, the lineage, and each net."""
    lineage = digest(read_lineage().model_dump(mode="json"))
    return {**atlas_code().plain(), "lineage": lineage, "nets": fingerprints(read_nets())}


def _preparation(name: str) -> dict[str, Any]:
    """Compose the preparation of one data set inside `hydra_ready`."""
    from hydra import compose
    from omegaconf import OmegaConf

    composed: Any = OmegaConf.to_container(compose("prepare", [f"data={name}"]), resolve=True)
    code = prepare_code(composed["data"]["source"]["_target_"])
    page = {"file": composed["page"], "code": page_code().files}
    return {"config": composed["data"], **code.plain(), "page": page}


def _forget_others(runs: Iterable[str]) -> None:
    """Delete the marks of finished runs that are no longer in the plan: the report depends on those that are."""
    marks = {FINISHED / f"{key}.json" for key in runs}
    for mark in FINISHED.glob("*/*.json"):
        if mark not in marks:
            mark.unlink()


if __name__ == "__main__":
    run(main)
