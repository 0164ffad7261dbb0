"""`python -m convatlas.reporting.study_pages`: writes what was measured into the students' pages, `docs/studies/*.md`.

A page is written by hand but for the part between its two marks. There stand the tables and verdicts of the study,
under a line that says how many runs they rest on and where these come from. The index counts the verdicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from convatlas.core.cli import run
from convatlas.core.errors import UserError
from convatlas.core.files import write_text
from convatlas.reporting.documents import markdown_sections
from convatlas.reporting.origin import origin
from convatlas.reporting.reading import read_study
from convatlas.reporting.study import Study
from convatlas.reporting.verdicts import judge
from convatlas.reporting.wording import count, listed

__all__ = ["BEGIN", "END", "update_pages"]

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
INDEX = "README.md"


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
    found = sorted(path for path in pages.glob("*.md") if path.name != INDEX)
    if not found:
        raise UserError(f"{pages} holds no page of a study; start this in the root of the repository.")
    parts = {page: _around_measured(page) for page in found}
    planned = {page.stem: plan / f"{page.stem}.yaml" for page in found}
    studies = {name: read_study(file, runs) for name, file in planned.items() if file.is_file()}
    studies = {name: study for name, study in studies.items() if study.runs_finished}
    filled = {
        page: f"{before}{BEGIN}\n{_measured(studies[page.stem])}{END}{after}"
        for page, (before, after) in parts.items()
        if page.stem in studies
    }
    index = pages / INDEX
    filled[index] = _with_verdicts(index.read_text(encoding="utf-8"), studies)
    changed = {page: text for page, text in filled.items() if text != page.read_text(encoding="utf-8")}
    for page, text in changed.items():
        write_text(page, text)
    return list(changed)


def _with_verdicts(index: str, studies: Mapping[str, Study]) -> str:
    """Fill the last cell in the row of each study with how many claims have which verdict."""
    lines = index.splitlines(keepends=True)
    for number, line in enumerate(lines):
        cells = line.split("|")
        name = cells[1].partition("](")[2].partition(".md)")[0] if len(cells) == 5 else ""
        if name in studies:
            counts = Counter(each.verdict for each in judge(studies[name]))
            cells[3] = f" {', '.join(f'{number} {verdict}' for verdict, number in sorted(counts.items()))} "
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


def _measured(study: Study) -> str:
    return f"{_origin(study)}\n\n{markdown_sections(study, '###')}"


def _origin(study: Study) -> str:
    """Write `3 seeds, scale laptop, 20 of 21 runs, commit 0123456.`."""
    seeds = sorted({len(variant.seeds) for variant in study.variants})
    parts = [" or ".join(count(number, "seed") for number in seeds)]
    if study.plan.scale:
        parts.append(f"scale {study.plan.scale}")
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
