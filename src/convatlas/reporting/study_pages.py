"""`python -m convatlas.reporting.study_pages`: copies what was measured into the students' pages, `docs/studies/*.md`.

A page is written by hand but for the part between its two marks. There stand the tables and verdicts of the study's
report, under a line that says how many runs they rest on and where these come from. The index counts the verdicts.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from convatlas.core.cli import run
from convatlas.core.errors import UserError
from convatlas.core.files import write_text
from convatlas.reporting.wording import count, listed

__all__ = ["BEGIN", "END", "update_pages"]

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
INDEX = "README.md"

_VERDICT = re.compile(r"^- \*\*([^*]+)\*\*: ", re.MULTILINE)
_ROW = re.compile(
    r"^(\| \[[^\]]+\]\((\w+)\.md\) \|[^|]*\|)[^|\n]*\|$", re.MULTILINE
)  # of the index: link, question, verdicts
_SEEDS = re.compile(r"(?<!\\)\| (\d+) of (\d+) \|")  # the second cell of a variant's row; a title may hold `\|`
_SCALE = re.compile(r"<span>scale ([^<]+)</span>")
_COMMIT = re.compile(r"<dt>Commit</dt><dd><code>([^<]+)</code>")


def update_pages(pages: Path, reports: Path) -> list[Path]:
    """Fill the measured part of every page whose study has a report; the other pages stay as they are.

    All pages are read and checked before the first is written.

    Args:
        pages: the folder of `<study>.md` and their index `README.md`, whose third column is filled.
        reports: the folder of `<study>/table.md` and `<study>/index.html`, as `python -m convatlas.report` writes them.

    Returns:
        The pages that changed.

    Raises:
        UserError: there is no page, a page has not exactly one measured part, or a report's table is not one.
    """
    found = sorted(path for path in pages.glob("*.md") if path.name != INDEX)
    if not found:
        raise UserError(f"{pages} holds no page of a study; start this in the root of the repository.")
    changed, texts = {}, {}
    for page in found:
        text = texts[page.stem] = page.read_text()
        before, after = _around_measured(page, text)
        report = reports / page.stem
        if (report / "table.md").is_file():
            filled = f"{before}{BEGIN}\n{_measured(report)}{END}{after}"
            texts[page.stem] = filled
            if filled != text:
                changed[page] = filled
    index = pages / INDEX
    filled = _with_verdicts(index.read_text(), texts)
    if filled != index.read_text():
        changed[index] = filled
    for page, filled in changed.items():
        write_text(page, filled)
    return list(changed)


def _with_verdicts(index: str, pages: Mapping[str, str]) -> str:
    """Fill the third column of the index: how many claims have which verdict on each page."""

    def filled(row: re.Match[str]) -> str:
        counts = Counter(verdict.lower() for verdict in _VERDICT.findall(_between_marks(pages.get(row[2], ""))))
        return f"{row[1]} {', '.join(f'{number} {verdict}' for verdict, number in sorted(counts.items()))} |"

    return _ROW.sub(filled, index)


def _between_marks(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]


def _around_measured(page: Path, text: str) -> tuple[str, str]:
    """Return what stands before and after the measured part of a page."""
    begins, ends = text.count(BEGIN), text.count(END)
    if (begins, ends) != (1, 1) or text.index(BEGIN) > text.index(END):
        raise UserError(
            f"{page} must have {BEGIN} and below it {END}, each once, but has them {begins} and {ends} times; "
            "write them around the part that is to be filled."
        )
    return text[: text.index(BEGIN)], text[text.index(END) + len(END) :]


def _measured(report: Path) -> str:
    """Write the measured part: where the figures come from, then the report's tables and verdicts a heading lower."""
    table = report / "table.md"
    text = table.read_text()
    start = text.find("\n## ")
    rows = [(int(finished), int(planned)) for finished, planned in _SEEDS.findall(text)]
    if start < 0 or not rows:
        raise UserError(f"{table} is not the table of a report; run `python -m convatlas.report {report.name}`.")
    sections = re.sub(r"^## ", "### ", text[start + 1 :].rstrip(), flags=re.MULTILINE)
    return f"{_origin(rows, report / 'index.html')}\n\n{sections}\n"


def _origin(rows: list[tuple[int, int]], page: Path) -> str:
    """Say `3 seeds, scale laptop, 20 of 21 runs, commit 0123456.`; scale and commit as the report's page has them."""
    seeds = sorted({planned for _, planned in rows})
    parts = [" or ".join(count(number, "seed") for number in seeds)]
    source = page.read_text() if page.is_file() else ""
    if scale := _SCALE.search(source):
        parts.append(f"scale {html.unescape(scale[1])}")
    parts.append(f"{sum(finished for finished, _ in rows)} of {count(sum(planned for _, planned in rows), 'run')}")
    if commits := [_short(html.unescape(commit)) for commit in _COMMIT.findall(source)]:
        parts.append(f"{'commit' if len(commits) == 1 else 'commits'} {listed(commits)}")
    return ", ".join(parts) + "."


def _short(commit: str) -> str:
    """Cut a commit to seven digits; `with changes` stays behind it."""
    digits, space, rest = commit.partition(" ")
    return f"{digits[:7]}{space}{rest}"


def main() -> None:
    """Fill the pages of this repository."""
    changed = update_pages(Path("docs/studies"), Path("reports/studies"))
    print("\n".join(map(str, changed)) or "The pages already say what the reports say.")


if __name__ == "__main__":
    run(main)
