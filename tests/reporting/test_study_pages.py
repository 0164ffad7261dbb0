"""The students' pages: what was measured comes into them from the reports, and nothing in them leads nowhere."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from made_runs import ENVIRONMENT, MadeVariant, accuracies, make_study

from convatlas.core.errors import UserError
from convatlas.reporting.study_pages import BEGIN, END, update_pages
from helpers import ROOT

PAGES = ROOT / "docs" / "studies"
EMPTY = f"# A title\n\nBefore.\n\n{BEGIN}\nNot run yet.\n{END}\n\nAfter.\n\n- **Wrong**: no verdict.\n"
SVG = "{http://www.w3.org/2000/svg}"

# ---- the program ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Make two empty pages, and plan and runs of one of their studies, of which one run is missing."""
    made = {
        "a": MadeVariant(test=accuracies(0.95, 0.951, 0.94), title="a | 1 of 2"),
        "b": MadeVariant(test=accuracies(0.85, 0.852), title="b", environment=ENVIRONMENT | {"dirty": True}),
    }
    claims = [{"says": "a is better", "holds": ["error[a] < error[b]"], "note": None}]
    study_file, runs = make_study(tmp_path, made, question="Which?", claims=claims)
    make_study(tmp_path, {"c": MadeVariant(test={})}, name="unfinished")
    pages = tmp_path / "pages"
    pages.mkdir()
    for name in ("overview", "densenet", "unfinished"):
        (pages / f"{name}.md").write_text(EMPTY)
    (pages / "README.md").write_text(
        "| study | question | claims |\n|---|---|---|\n"
        "| [Overview](overview.md) | Which? | |\n| [Densenet](densenet.md) | Why? | old |\n"
    )
    return pages, study_file.parent, runs


def test_a_page_gets_the_tables_and_verdicts_of_its_study_and_the_index_counts_them(folders):
    pages = folders[0]
    changed = [pages / name for name in ("overview.md", "README.md", "verdicts.json", "verdicts.md")]
    assert update_pages(*folders) == changed
    assert (pages / "README.md").read_text().splitlines()[2:] == [
        "| [Overview](overview.md) | Which? | 1 confirmed |",
        "| [Densenet](densenet.md) | Why? | old |",
    ]
    before, measured, after = re.split(f"{BEGIN}\n|{END}", (pages / "overview.md").read_text())
    assert (before, after) == tuple(re.split(f"{BEGIN}\n.*\n{END}", EMPTY))
    assert measured.startswith(
        "3 seeds, scale laptop, 5 of 6 runs, commits 0123456 and 0123456 with changes.\n\n"
        "### Classification on digits\n\n| variant | seeds |"
    )
    assert "| a \\| 1 of 2 | 3 of 3 | 94.70 ± 0.61 |" in measured
    assert "### Claims\n\n- **Confirmed**: a is better.\n  - `error[a] < error[b]`: difference" in measured
    assert "Which?" not in measured


def test_a_page_without_results_stays_as_it_is_and_a_second_time_changes_nothing(folders):
    update_pages(*folders)
    assert (folders[0] / "densenet.md").read_text() == (folders[0] / "unfinished.md").read_text() == EMPTY
    assert update_pages(*folders) == []


def test_what_was_measured_before_is_replaced(folders):
    update_pages(*folders)
    page = folders[0] / "overview.md"
    first = page.read_text()
    page.write_text(first.replace("95.00", "12.34"))
    update_pages(*folders)
    assert page.read_text() == first


def test_findings_of_other_studies_and_images_stay_and_stand_side_by_side(folders):
    pages = folders[0]
    update_pages(*folders)
    (old,) = json.loads((pages / "verdicts.json").read_text())
    assert (old["study"], old["images"], old["verdict"], old["seeds"]) == ("overview", "made", "confirmed", 2)
    kept = [
        old | {"verdict": "refuted"},
        old | {"images": "cifar10", "verdict": "refuted"},
        old | {"study": "densenet"},
    ]
    (pages / "verdicts.json").write_text(json.dumps(kept))
    update_pages(*folders)
    found = {
        (each["study"], each["images"]): each["verdict"] for each in json.loads((pages / "verdicts.json").read_text())
    }
    assert found == {
        ("densenet", "made"): "confirmed",
        ("overview", "made"): "confirmed",
        ("overview", "cifar10"): "refuted",
    }
    text = (pages / "verdicts.md").read_text()
    assert "| claim | made | cifar10 |" in text
    row = next(
        line for line in text.splitlines() if line.startswith("| a is better: `error[a] < error[b]`") and "ref" in line
    )
    assert re.search(r"\| \*\*confirmed\*\* \+9\.\d points \(.*\), 2 seeds, .* \| \*\*refuted\*\*", row)


def test_a_study_on_other_images_stands_below_its_own(folders):
    pages, plan, _ = folders
    made = {key: MadeVariant(test=accuracies(*scores)) for key, scores in (("a", (0.7, 0.71)), ("b", (0.75, 0.765)))}
    claims = [{"says": "a is better", "holds": ["error[a] < error[b]"], "note": None}]
    make_study(plan.parent, made, name="overview-cifar10", claims=claims, images="cifar10")
    update_pages(*folders)
    assert "| 1 confirmed; 1 undecided on cifar10 |" in (pages / "README.md").read_text()
    assert "3 seeds, scale laptop on cifar10, 4 of 6 runs" in (pages / "overview.md").read_text()


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("# No marks\n", "0 and 0 times"),
        (EMPTY.replace(END, ""), "1 and 0 times"),
        (EMPTY + EMPTY, "2 and 2 times"),
        (f"{END}\n{BEGIN}\n", "1 and 1 times"),
    ],
)
def test_a_page_with_wrong_marks_is_named_and_no_page_is_written(folders, text, counts):
    pages = folders[0]
    (pages / "zebra.md").write_text(text)  # the last to be read
    with pytest.raises(UserError, match=rf"zebra\.md must have {BEGIN} and below it {END}, each once, .* {counts};"):
        update_pages(*folders)
    assert (pages / "overview.md").read_text() == EMPTY


def test_a_folder_without_pages_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no page of a study; start this in the root"):
        update_pages(tmp_path, tmp_path, tmp_path)


# ---- the pages ------------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    """Return the pages of the studies, without their index."""
    return sorted(path for path in PAGES.glob("*.md") if path.name not in ("README.md", "verdicts.md"))


def page_id(page: Path) -> str:
    """Name a test by its page."""
    return page.stem


def test_every_study_has_a_page_and_every_page_stands_in_the_index():
    names = {page.stem for page in pages()}
    assert {path.stem for path in (ROOT / "conf" / "study").glob("*.yaml")} <= names
    assert set(re.findall(r"\]\((\w+)\.md\)", (PAGES / "README.md").read_text())) == names | {"verdicts"}


@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_a_page_has_its_parts_and_its_links_lead_somewhere(page):
    text = page.read_text()
    heads = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert [head for head in heads if head != "Why it differs"] == [
        "The idea",
        "What the lecture says",
        "What we measured",
        "Run it again",
    ]
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    assert f"python -m convatlas.plan study={page.stem} && dvc repro" in text
    links = re.findall(r"\]\(([^)#]+)", text)
    assert f"images/{page.stem}.svg" in links
    assert [link for link in links if not link.startswith("http") and not (PAGES / link).exists()] == []


@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_a_drawing_is_described_readable_and_stands_alone(page):
    text = (PAGES / "images" / f"{page.stem}.svg").read_text()
    root = ET.fromstring(text)
    assert all((root.findtext(f"{SVG}{name}") or "").strip() for name in ("title", "desc"))
    sizes = [float(size) for size in re.findall(r'font(?:-size)?(?:="|:[^;}]*?)([\d.]+)(?:px|")', text)]
    assert sizes
    assert min(sizes) >= 12
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<script|<image", text)
