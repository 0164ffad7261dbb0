"""`python -m convatlas.resolve`: from params.yaml to plan/, the full configuration of every run and study.

DVC does not compose Hydra nor read imports; this stage does both. A run's file in plan/ holds its whole configuration
and the fingerprints of the code it imports, and its training depends on that file. So an edit under conf/ or src/
re-trains exactly the runs that it changes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from convatlas.core.cli import run
from convatlas.core.composing import hydra_ready
from convatlas.core.errors import UserError
from convatlas.core.files import read_yaml, replace_folder, write_yaml
from convatlas.core.source_code import run_code
from convatlas.search.planned import planned_search, searches_for
from convatlas.studies.planning import load_study, planned_runs, study_file, template_values

REMEDY = "run `python -m convatlas.plan`, which writes params.yaml anew."


def main() -> None:
    """Write plan/."""
    params = read_yaml(Path("params.yaml"), REMEDY)
    missing = {"scale", "seeds", "overrides", "studies", "searches", "runs"} - set(params)
    if missing:
        raise UserError(f"params.yaml lacks {', '.join(sorted(missing))}; {REMEDY}")
    partial = Path(".plan.partial")
    shutil.rmtree(partial, ignore_errors=True)
    written = _write(params, partial)
    listed = params["runs"] | params["searches"]
    if written != listed:
        changed = sorted(key for key in {*written, *listed} if written.get(key) != listed.get(key))
        shutil.rmtree(partial)
        searches = f" search={','.join(params['searches'])}" if params["searches"] else ""
        raise UserError(
            f"params.yaml does not list the runs that its studies and scale give (first difference: {changed[0]}); "
            f"run `python -m convatlas.plan study={','.join(params['studies'])} scale={params['scale']}{searches}`."
        )
    replace_folder(partial, Path("plan"))
    print(f"plan/: {len(params['runs'])} runs")


def _write(params: dict[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    """Write every file of the plan below `folder`, and return the template values of each run and search."""
    written: dict[str, dict[str, str]] = {}
    models: list[dict[str, Any]] = []
    with hydra_ready():
        for name in params["studies"]:
            study, scale = load_study(name, params["scale"])
            runs = planned_runs(study, scale, params["seeds"], params["overrides"])
            for planned in runs:
                run_file = {"config": planned.config.plain(), "code": run_code(planned.config)}
                write_yaml(folder / f"{planned.key}.yaml", run_file)
                written[planned.key] = template_values(planned.config)
                models.append(planned.config.model)
            write_yaml(folder / f"{name}.yaml", study_file(study, scale, params["seeds"], runs))
        for name, search in searches_for(params["searches"], models).items():
            write_yaml(folder / "searches" / f"{name}.yaml", planned_search(search))
            written[name] = {"data": search.data.name}
    return written


if __name__ == "__main__":
    run(main)
