"""`python -m convatlas.report`: the pages of all planned studies, index and summary; `... overview`: that page alone.

It reads the files that runs left behind, by the list in plan/; never MLflow, never whatever else lies in runs/. Where
the studies were tracked, MLflow gets the pages.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from convatlas.core.cli import print_message, run
from convatlas.core.errors import UserError, near_matches
from convatlas.core.imports import quick_imports
from convatlas.studies.planning import read_tracking

PLAN, RUNS, REPORTS = Path("plan"), Path("runs"), Path("reports")


def main() -> None:
    """Write the pages of the studies that the command line names, or of all, with what leads to them."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    known = sorted(path.stem for path in PLAN.glob("*.yaml"))
    if not known:
        raise UserError("There is no plan/; run `dvc repro resolve` first.")
    words = sys.argv[1:]
    for word in words:
        if word not in known:
            raise UserError(f"{word}: the plan has no such study. {near_matches(word, known)}")
    with quick_imports():
        from convatlas.reporting.rendering import check_generated
        from convatlas.reporting.report import write_index, write_report, write_summary

    folders = {study: REPORTS / "studies" / study for study in words or known}
    for folder in (*folders.values(), *([] if words else [REPORTS])):
        check_generated(folder / "index.html", "move it")
    for study, folder in folders.items():
        write_report(PLAN / f"{study}.yaml", RUNS, folder)
        print(folder / "index.html")
    if not words:
        write_summary(PLAN, RUNS, REPORTS)
        write_index(PLAN, RUNS, REPORTS)
        print(REPORTS / "index.html")
    publish(folders)


def publish(folders: Mapping[str, Path]) -> None:
    """Put the reports into MLflow; a store that does not take them is reported and costs nothing else."""
    variant = min(path.stem for path in (PLAN / min(folders)).glob("*.yaml"))
    tracking = read_tracking(f"{min(folders)}/{variant}")["tracking"]
    if not tracking["enabled"]:
        return
    from convatlas.tracking.reports import publish_reports

    try:
        publish_reports(folders, tracking["uri"])
    except UserError as error:
        print_message(f"{error} The reports are complete, only MLflow does not have them.")


if __name__ == "__main__":
    run(main)
