"""`python -m convatlas.report`: the pages of all planned studies, index and summary; `... overview`: that page alone.

It reads the files that runs left behind, by the list in plan/; never MLflow, never whatever else lies in runs/. Where
the studies were tracked, MLflow gets the pages. A report stays, with its line in the index, as long as its runs are
there, whatever the plan is. `... runs=runs/adhoc/*` compares runs that were trained by themselves.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from convatlas.core.answers import Answering, answering
from convatlas.core.cli import print_message, read_options, run
from convatlas.core.errors import UserError, near_matches
from convatlas.core.imports import quick_imports
from convatlas.studies.planning import read_tracking, study_names

PLAN, RUNS, REPORTS, METRICS = Path("plan"), Path("runs"), Path("reports"), Path("metrics")


class Options(Answering):
    """What the command line may say."""

    study: list[str] = Field(default=[])
    """Studies whose page alone is written, also those of earlier plans."""
    runs: list[str] = Field(default=[])
    """Folders of runs to compare, runs/adhoc/* for example; their page is reports/studies/adhoc/index.html."""


def main() -> None:
    """Write the pages of the studies that the command line names, or of all, with what leads to them."""
    options = read_options(Options, sys.argv[1:], positional="study")
    with quick_imports():
        from tqdm import tqdm

        from convatlas.reporting.kept import kept_plans, plan_of_runs
        from convatlas.reporting.rendering import check_generated
        from convatlas.reporting.report import write_index, write_report, write_summary

    planned = {path.stem: path for path in sorted(PLAN.glob("*.yaml"))}
    known = kept_plans(REPORTS) | planned
    if not planned and not options.runs and not options.study:
        raise UserError("There is no plan/; run `dvc repro resolve` first.")
    for word in options.study:
        if word not in known:
            raise UserError(f"{word}: there is no plan and no report of such a study. {near_matches(word, known)}")
    folders = chosen_runs(options.runs)
    name = name_of_runs(folders, planned) if folders else ""
    whole = not options.study and not folders
    pages = {study: REPORTS / "studies" / study for study in options.study or (planned if whole else ())}
    for folder in (*pages.values(), *([REPORTS / "studies" / name] if name else []), REPORTS):
        check_generated(folder / "index.html", "move it")
    if name:
        pages[name] = REPORTS / "studies" / name
        known[name] = plan_of_runs(folders, RUNS, pages[name])
    with answering(options) as answer:
        for study, folder in tqdm(pages.items(), unit=" reports", disable=None, delay=1, leave=False):
            write_report(known[study], RUNS, folder)
        if whole:
            write_summary(PLAN, RUNS, REPORTS, METRICS)
        write_index(PLAN, RUNS, REPORTS)
        written = [*(folder / "index.html" for folder in pages.values()), REPORTS / "index.html"]
        publish({study: folder for study, folder in pages.items() if study in planned})
        answer("\n".join(map(str, written)), [path.as_posix() for path in written])


def chosen_runs(words: Sequence[str]) -> list[Path]:
    """Return the folders `runs/<study>/<variant>` that paths and patterns name.

    Raises:
        UserError: one names nothing, or the folders are not of one study below `runs/`.
    """
    folders: dict[Path, None] = {}
    for word in words:
        found = sorted(map(Path, glob.glob(word))) or [Path(word)]  # noqa: PTH207 - a pattern may have any root
        found = [path.parent if path.name.startswith("seed=") else path for path in found]
        finished = [path for path in found if any(path.glob("seed=*/metrics.json"))]
        if not finished:
            raise UserError(f"runs={word} names no finished run; runs/adhoc/* names all that were trained alone.")
        folders |= dict.fromkeys(finished)
    for path in folders:
        if path.parent.parent.resolve() != RUNS.resolve():
            raise UserError(f"runs: {path} is no folder runs/<study>/<variant>; only such runs are compared.")
    if len({path.parent.resolve() for path in folders}) > 1:
        raise UserError("runs: these runs are of several studies; name those of one folder below runs/.")
    return [RUNS / path.parent.name / path.name for path in folders]


def name_of_runs(folders: Sequence[Path], planned: Mapping[str, Path]) -> str:
    """Return the name of their report: that of their folder, unless that is a study's."""
    name = folders[0].parent.name
    return f"{name}-runs" if name in planned or name.partition("-")[0] in study_names() else name


def publish(folders: Mapping[str, Path]) -> None:
    """Put the reports into MLflow; a store that does not take them is reported and costs nothing else."""
    if not folders:
        return
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
