"""What `python -m convatlas.report` writes: the page of a study, the index of all, and the summary for DVC.

Beside a page lies the plan that it was written from, by which the index lists it when the plan is another.
The same plan and runs give the same bytes: nothing of the present time or machine enters them. `plan` is the folder of
`<study>.yaml`, beside each the folder of its variants' resolved configurations; `runs` holds
`<study>/<variant>/seed=<n>/`. Every function raises UserError where a file of these is not readable.
"""

from __future__ import annotations

from pathlib import Path

from convatlas.core.errors import UserError
from convatlas.core.files import write_json, write_text
from convatlas.reporting.documents import as_latex, as_markdown, claim_records
from convatlas.reporting.kept import keep_plan, kept_plans, remove_without_runs
from convatlas.reporting.page import render_index, render_report
from convatlas.reporting.reading import read_studies, read_study
from convatlas.reporting.rendering import vega
from convatlas.reporting.summary import curve_records, overall, scores, variant_records
from convatlas.reporting.tables import as_csv, records

__all__ = ["write_index", "write_report", "write_summary"]


def write_report(study_file: Path, runs: Path, output: Path) -> None:
    """Write `index.html`, `table.csv`, `table.md`, `table.tex` and `claims.json` of one study, and keep its plan."""
    study = read_study(study_file, runs)
    write_text(output / "index.html", render_report(study, runs))
    write_text(output / "table.csv", as_csv(records(study)))
    write_text(output / "table.md", as_markdown(study))
    write_text(output / "table.tex", as_latex(study))
    write_json(output / "claims.json", claim_records(study))
    keep_plan(study_file, output)


def write_index(plan: Path, runs: Path, output: Path) -> None:
    """Write `index.html`: the studies of the plan, by name, and after them the kept reports of others.

    A kept report whose runs are gone is deleted.

    Raises:
        UserError: there is neither.
    """
    planned = read_studies(plan, runs) if any(plan.glob("*.yaml")) else []
    names = {study.name for study in planned}
    others = {name: file for name, file in kept_plans(output).items() if name not in names}
    kept = [read_study(file, runs) for file in remove_without_runs(others, runs).values()]
    if not planned and not kept:
        raise UserError("There is no report to list; run `dvc repro`, or name runs: runs=runs/adhoc/*.")
    data_pages = sorted((output / "data").glob("*.html"))
    write_text(output / "index.html", render_index(planned, kept, [page.stem for page in data_pages]))


def write_summary(plan: Path, runs: Path, output: Path, metrics: Path) -> None:
    """Write what DVC's views are for.

    Args:
        plan: the folder of the plan.
        runs: the folder of the runs.
        output: gets `variants.csv` and `curves.csv` for `dvc plots show`, and `vega.js`, which draws them.
        metrics: gets `summary.json` for `dvc metrics` and `dvc exp show`, and `scores.json` with every variant's score.
    """
    studies = read_studies(plan, runs)
    write_json(metrics / "summary.json", overall(studies))
    write_json(metrics / "scores.json", scores(studies))
    write_text(output / "variants.csv", as_csv(list(variant_records(studies))))
    write_text(output / "curves.csv", as_csv(list(curve_records(studies))))
    write_text(output / "vega.js", vega())
