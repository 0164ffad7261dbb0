"""`python -m convatlas.reporting.study_pages`: writes what was measured into the students' pages, `docs/studies/*.md`.

A page is written by hand but for the part between its two marks. There stand the tables and verdicts of the study, on
each kind of images, under a line that says how many runs they rest on and where these come from. The index counts the
verdicts. `verdicts.json` keeps every finding, also of studies that are not in the present plan, and `verdicts.md` is
that as a table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from convatlas.core.cli import run
from convatlas.core.errors import UserError, first_mistake
from convatlas.core.files import read_json, write_text
from convatlas.reporting.documents import markdown_sections
from convatlas.reporting.findings import Finding, findings, record, rows, summary, words
from convatlas.reporting.origin import origin
from convatlas.reporting.reading import read_study
from convatlas.reporting.study import Study
from convatlas.reporting.verdicts import judge, tally
from convatlas.reporting.wording import count, listed

__all__ = ["BEGIN", "END", "all_findings", "update_pages"]

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
INDEX, VERDICTS = "README.md", "verdicts.json"


def update_pages(pages: Path, plan: Path, runs: Path) -> list[Path]:
    """Fill the measured part of every page whose study is planned and has finished runs; the others stay as they are.

    All pages are read and checked before the first is written.

    Args:
        pages: the folder of `<study>.md` and their index `README.md`, whose last column is filled.
        plan: the folder of `<study>.yaml`.
        runs: the folder that holds `<study>/<variant>/seed=<n>/`.

    Returns:
        The pages that changed.

    Raises:
        UserError: there is no page, a page has not exactly one measured part, or the plan or a run is not readable.
    """
    found = sorted(path for path in pages.glob("*.md") if path.name not in (INDEX, "verdicts.md"))
    if not found:
        raise UserError(f"{pages} holds no page of a study; start this in the root of the repository.")
    parts = {page: _around_measured(page) for page in found}
    studies = {page.stem: _finished(page.stem, plan, runs) for page in found}
    studies = {name: on_images for name, on_images in studies.items() if on_images}
    filled = {
        page: f"{before}{BEGIN}\n{_measured(studies[page.stem])}{END}{after}"
        for page, (before, after) in parts.items()
        if page.stem in studies
    }
    index = pages / INDEX
    filled[index] = _with_verdicts(index.read_text(encoding="utf-8"), studies)
    kept = all_findings(pages / VERDICTS, [study for on_images in studies.values() for study in on_images])
    filled[pages / VERDICTS] = json.dumps([record(each) for each in kept], indent=1) + "\n"
    filled[(pages / VERDICTS).with_suffix(".md")] = _verdict_page(kept)
    changed = {p: text for p, text in filled.items() if not p.is_file() or text != p.read_text(encoding="utf-8")}
    for page, text in changed.items():
        write_text(page, text)
    return list(changed)


def _finished(name: str, plan: Path, runs: Path) -> list[Study]:
    """Read a study on every kind of images that is planned and has finished runs, its own first."""
    files = [plan / f"{name}.yaml", *sorted(plan.glob(f"{name}-*.yaml"))]
    studies = [read_study(file, runs) for file in files if file.is_file()]
    return [study for study in studies if study.runs_finished]


def all_findings(file: Path, studies: Sequence[Study]) -> list[Finding]:
    """Return the findings of these studies in the place of those that the file has, and its others; by study.

    Raises:
        UserError: the file is not readable.
    """
    found = [each for study in studies for each in findings(study)]
    renewed = {(study.name.partition("-")[0], study.plan.images) for study in studies}
    old = read_json(file, "restore it from git.") if file.is_file() else []
    try:
        kept = [each for each in map(Finding.model_validate, old) if (each.study, each.images) not in renewed]
    except ValidationError as error:
        raise UserError(f"{file}: {first_mistake(error)}; restore it from git.") from error
    return sorted([*kept, *found], key=lambda each: (each.study, each.images != "made"))


def _verdict_page(found: Sequence[Finding]) -> str:
    """Write all findings as one table for each study."""
    images = list(dict.fromkeys(each.images for each in found))
    lines = [
        "# Every claim and what became of it",
        "",
        (
            "Written by `make study-pages` from [verdicts.json](verdicts.json); the studies are explained in their "
            "[pages](README.md). Points are those of the test score in the claim's favour, with the interval by which "
            "it is judged; then the seeds, and the seconds of training of all its variants."
        ),
        "",
        *summary(found),
        "",
    ]
    last = ""
    for row in rows(found):
        if row.study != last:
            last = row.study
            lines += ["", f"## [{row.study.replace('_', ' ').capitalize()}]({row.study}.md)", ""]
            lines += [f"| claim | {' | '.join(images)} |", f"|---|{'---|' * len(images)}"]
        cells = [_cell(row.by_images.get(name)) for name in images]
        kind = " (counted)" if row.kind == "counted" else ""
        comparison = f": `{row.comparison}`" if row.comparison else ""
        lines.append(f"| {row.claim}{kind}{comparison} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(found: Finding | None) -> str:
    if found is None:
        return ""
    needed = f"; {found.needed} seeds would probably decide it" if found.needed else ""
    return f"**{found.verdict}** {words(found)}{needed}"


def _with_verdicts(index: str, studies: Mapping[str, Sequence[Study]]) -> str:
    """Fill the last cell in the row of each study with how many claims have which verdict."""
    lines = index.splitlines(keepends=True)
    for number, line in enumerate(lines):
        cells = line.split("|")
        name = cells[1].partition("](")[2].partition(".md)")[0] if len(cells) == 5 else ""
        if name in studies:
            on_images = [f"{tally(judge(study))}{_on(study)}" for study in studies[name]]
            cells[3] = f" {'; '.join(on_images)} "
            lines[number] = "|".join(cells)
    return "".join(lines)


def _around_measured(page: Path) -> tuple[str, str]:
    """Return what stands before and after the measured part of a page."""
    text = page.read_text(encoding="utf-8")
    begins, ends = text.count(BEGIN), text.count(END)
    if (begins, ends) != (1, 1) or text.index(BEGIN) > text.index(END):
        raise UserError(
            f"{page} must have {BEGIN} and below it {END}, each once, but has them {begins} and {ends} times; "
            "write them around the part that is to be filled."
        )
    return text.partition(BEGIN)[0], text.partition(END)[2]


def _measured(studies: Sequence[Study]) -> str:
    return "\n".join(f"{_origin(study)}\n\n{markdown_sections(study, '###')}" for study in studies)


def _on(study: Study) -> str:
    """Say on which images a study is, if not on its own."""
    return "" if study.plan.images == "made" else f" on {study.plan.images}"


def _origin(study: Study) -> str:
    """Write `3 seeds, scale laptop, 20 of 21 runs, commit 0123456.`."""
    seeds = sorted({len(variant.seeds) for variant in study.variants})
    parts = [" or ".join(count(number, "seed") for number in seeds)]
    if study.plan.scale:
        parts.append(f"scale {study.plan.scale}{_on(study)}")
    parts.append(f"{study.runs_finished} of {count(study.runs_planned, 'run')}")
    if commits := [_short(commit) for commit, _ in origin(study).commits]:
        parts.append(f"{'commit' if len(commits) == 1 else 'commits'} {listed(commits)}")
    return ", ".join(parts) + "."


def _short(commit: str) -> str:
    """Cut a commit to seven digits; `with changes` stays behind it."""
    digits, space, rest = commit.partition(" ")
    return f"{digits[:7]}{space}{rest}"


def main() -> None:
    """Fill the pages of this repository."""
    changed = update_pages(Path("docs/studies"), Path("plan"), Path("runs"))
    print("\n".join(map(str, changed)) or "The pages already say what the runs say.")


if __name__ == "__main__":
    run(main)
