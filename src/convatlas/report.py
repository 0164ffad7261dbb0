"""`python -m convatlas.report overview`: writes the page of a study; `--summary`: the index and the summary files.

It reads the files that runs left behind, by the list in plan/; never MLflow, never whatever else lies in runs/.
"""

from __future__ import annotations

import sys
from pathlib import Path

from convatlas.cli import run
from convatlas.errors import UserError, near_matches

PLAN, RUNS, REPORTS = Path("plan"), Path("runs"), Path("reports")


def main() -> None:
    """Write what the command line names; without arguments, everything in the plan."""
    known = sorted(path.stem for path in PLAN.glob("*.yaml"))
    if not known:
        raise UserError("There is no plan/; run `dvc repro resolve` first.")
    words = sys.argv[1:]
    for word in words:
        if word not in {*known, "--summary"}:
            raise UserError(f"{word}: the plan has no such study. {near_matches(word, known)}")
    from convatlas.reporting.report import write_index, write_report, write_summary

    for study in [word for word in words if word in known] or ([] if words else known):
        write_report(PLAN / f"{study}.yaml", RUNS, REPORTS / study)
        print(f"{REPORTS / study / 'index.html'}")
    if not words or "--summary" in words:
        write_summary(PLAN, RUNS, REPORTS)
        write_index(PLAN, RUNS, REPORTS)
        print(f"{REPORTS / 'index.html'}")


if __name__ == "__main__":
    run(main)
