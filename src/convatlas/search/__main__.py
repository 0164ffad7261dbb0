"""`python -m convatlas.search search=fbnet_dnas [data=digits] [seed=0]`: one architecture search, with its report.

`python -m convatlas.search --from-plan fbnet_dnas` searches exactly as `plan/searches/fbnet_dnas.yaml` says; that is
what a stage of the pipeline runs.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from convatlas.core.cli import GOES_ON, run, run_hydra
from convatlas.core.errors import UserError
from convatlas.core.imports import quick_imports
from convatlas.core.processes import die_with_parent

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from convatlas.search.config import SearchRun


def main(config: DictConfig) -> None:
    """Search as the command line says, and print where the report lies."""
    with quick_imports():
        from convatlas.search.composing import search_run

    _search(search_run(config), strict=True)


def from_plan(name: str) -> None:
    """Search as the plan says."""
    die_with_parent()
    from convatlas.core.files import read_yaml
    from convatlas.core.targets import check_trusted
    from convatlas.search.config import read_search
    from convatlas.studies.planning import check_places

    file = Path("plan") / "searches" / f"{name}.yaml"
    planned = read_yaml(file, "run `dvc repro resolve`.")
    if not isinstance(planned, dict) or not isinstance(planned.get("config"), dict):
        raise UserError(f"{file} plans no search; run `dvc repro -f resolve`.")
    check_trusted(planned, str(file))
    run = read_search(planned["config"])
    check_places(file, output_dir=run.output_dir, work_dir=run.work_dir)
    _search(run, strict=False)


def _search(checked: SearchRun, *, strict: bool) -> None:
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))  # an orderly end: KILLED in MLflow
    from convatlas.search.driver import run_search

    print(run_search(checked, strict=strict) / "report.html")


def command() -> None:
    """Run the command line."""
    if "--from-plan" in sys.argv:
        if len(sys.argv) != 3:
            run(lambda: (_ for _ in ()).throw(UserError("--from-plan takes one search, for example fbnet_dnas.")))
        run(lambda: from_plan(sys.argv[2]), interrupted=GOES_ON)
    run_hydra(main, "search", interrupted=GOES_ON)


if __name__ == "__main__":
    command()
