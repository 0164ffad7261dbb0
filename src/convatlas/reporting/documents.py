"""The main table and the verdicts of a study for other documents: Markdown, LaTeX, and JSON for programs."""

from __future__ import annotations

from typing import Any

from convatlas.reporting.findings import findings, record
from convatlas.reporting.study import Group, Study
from convatlas.reporting.tables import Table, main_table
from convatlas.reporting.verdicts import judge
from convatlas.reporting.wording import PLUS_MINUS, THIN_SPACE

__all__ = ["as_latex", "as_markdown", "claim_records", "markdown_sections"]

SECTIONS = ("Test", "Cost", "Time")
"""Of the main table; the validation is left to the page and to table.csv."""


def as_markdown(study: Study) -> str:
    """Write the main tables of all groups, and the claims with their verdicts, as a Markdown document."""
    return f"# {_markdown(study.title)}\n\n{_markdown(study.plan.question)}\n\n{markdown_sections(study)}"


def markdown_sections(study: Study, heading: str = "##") -> str:
    """Write the sections of that document under headings of a level of one's own."""
    parts = []
    for group in study.groups:
        heads, rows = _lines(group)
        lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
        lines += [f"| {' | '.join(map(_markdown, row))} |" for row in rows]
        parts.append(f"{heading} {group.title}\n\n" + "\n".join(lines) + "\n")
    parts.append("Mean ± sample standard deviation over the seeds; no ± for a single seed.\n")
    judged = judge(study)
    if judged:
        parts.append(f"{heading} Claims\n")
    for each in judged:
        note = f" ({_markdown(each.claim.note)})" if each.claim.note else ""
        parts.append(f"- **{each.verdict.capitalize()}**: {_markdown(each.claim.says)}.{note}")
        parts += [f"  - `{part.text}`: {part.interval or part.reason}" for part in each.checked]
    return "\n".join(parts).rstrip() + "\n"


def as_latex(study: Study) -> str:
    """Write the main tables of all groups as LaTeX; they need the package booktabs."""
    import pandas as pd

    parts = []
    for group in study.groups:
        heads, rows = _lines(group)
        table = pd.DataFrame(rows, columns=heads).to_latex(
            index=False, escape=True, column_format="l" + "r" * (len(heads) - 1)
        )
        table = table.replace(PLUS_MINUS, r"$\pm$").replace(THIN_SPACE, r"\,").replace("–", "--")
        parts.append(f"% {study.title}: {group.title}\n{table}")
    return "\n".join(parts)


def claim_records(study: Study) -> list[dict[str, Any]]:
    """Return every comparison of every claim with its verdict and the values behind it, in the study's order."""
    return [record(found) for found in findings(study)]


def _lines(group: Group) -> tuple[list[str], list[list[str]]]:
    """Return the heads and, for each variant, its title, its finished seeds and the figures of the main table."""
    table = Table(tuple(column for column in main_table(group).columns if column.section in SECTIONS))
    heads = ["variant", "seeds", *(f"test {c.title}" if c.section == "Test" else c.title for c in table.columns)]
    rows = []
    for number, variant in enumerate(group.variants):
        figures = [f"{c.text} {PLUS_MINUS} {c.std}" if c.std else c.text for c in table.row(number)]
        rows.append([variant.title, f"{len(variant.runs)} of {len(variant.seeds)}", *figures])
    return heads, rows


def _markdown(text: str) -> str:
    """Keep a text from ending a cell or becoming markup."""
    return text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
