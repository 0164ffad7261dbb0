"""`python -m convatlas.search search=fbnet_dnas [data=digits] [seed=0]`: one architecture search, with its report.

`python -m convatlas.search --from-plan fbnet_dnas` searches exactly as `plan/searches/fbnet_dnas.yaml` says; that is
what a stage of the pipeline runs.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from convatlas.core.answers import Answer, answering, take_answering
from convatlas.core.cli import GOES_ON, run, run_hydra
from convatlas.core.errors import UserError
from convatlas.core.imports import quick_imports
from convatlas.core.processes import die_with_parent

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from convatlas.search.config import SearchRun


def main(config: DictConfig) -> Path:
    """Search as the command line says, and return where the results lie."""
    with quick_imports():
        from convatlas.search.composing import search_run

    return _search(search_run(config), strict=True)


def answer_of(answer: Answer) -> Callable[[list[tuple[str, Path]]], None]:
    """Return what says at the end where the reports lie, and for programs what was found."""

    def finish(jobs: list[tuple[str, Path]]) -> None:
        found = [json.loads((folder / "result.json").read_text(encoding="utf-8")) for _, folder in jobs]
        reports = [folder / "report.html" for _, folder in jobs]
        records = [{"report": str(report), **result} for report, result in zip(reports, found, strict=True)]
        answer("\n".join(map(str, reports)), records)

    return finish


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
    print(_search(run, strict=False) / "report.html")


def _search(checked: SearchRun, *, strict: bool) -> Path:
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))  # an orderly end: KILLED in MLflow
    from convatlas.search.driver import run_search

    return run_search(checked, strict=strict)


def command() -> None:
    """Run the command line."""
    if "--from-plan" in sys.argv:
        if len(sys.argv) != 3:
            run(lambda: (_ for _ in ()).throw(UserError("--from-plan takes one search, for example fbnet_dnas.")))
        run(lambda: from_plan(sys.argv[2]), interrupted=GOES_ON)
    options, sys.argv[1:] = take_answering(sys.argv[1:])
    with answering(options) as answer:
        run_hydra(main, "search", interrupted=GOES_ON, finish=answer_of(answer))


if __name__ == "__main__":
    command()
