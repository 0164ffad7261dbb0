"""docs/lectures.md and conf/study hold together: every entry of the lectures has a claim, a test or a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from convatlas.studies.planning import Claim, study_names
from helpers import ROOT

ENTRIES = yaml.safe_load(Path(__file__).with_name("lecture_entries.yaml").read_text())
STEPS = {step["idea"] for step in yaml.safe_load((ROOT / "conf" / "study" / "overview.yaml").read_text())["steps"]}
ROW = re.compile(r"^\| (?!where |---)(.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
ROWS = [(place, cell) for place, _, cell in ROW.findall((ROOT / "docs" / "lectures.md").read_text())]


@pytest.fixture(scope="module")
def claims() -> dict[str, dict[str, Claim]]:
    """Return the claims of every study by what they say."""
    studies = {name: yaml.safe_load((ROOT / "conf" / "study" / f"{name}.yaml").read_text()) for name in study_names()}
    listed = {name: map(Claim.model_validate, study["claims"]) for name, study in studies.items()}
    return {name: {claim.says: claim for claim in each} for name, each in listed.items()}


def test_every_entry_of_the_lectures_is_in_one_row() -> None:
    places = [place for place, _ in ROWS]
    assert len(set(places)) == len(places)
    assert {row for entry in ENTRIES.values() for row in entry.values()} - set(places) == set()
    assert set(study_names()) - set(ENTRIES) == set()


def test_every_row_names_claims_that_there_are_tests_or_a_reason(claims: dict[str, dict[str, Claim]]) -> None:
    named: set[tuple[str, str]] = set()
    for place, cell in ROWS:
        for part in cell.split("<br>"):
            if file := re.fullmatch(r"by construction: `(.+)`", part):
                assert (ROOT / file[1]).is_file(), place
            elif steps := re.fullmatch(r"\[overview\]\(studies/overview\.md\), step: (.+)", part):
                assert set(re.findall(r"\*(.+?)\*", steps[1])) <= STEPS, place
            elif not re.match(r"none: .+", part):
                study, linked, listed = re.fullmatch(r"\[(\w+)\]\(studies/(\w+)\.md\): (.+)", part).groups()
                assert study == linked, place
                for says, reason in re.findall(r"\*(.+?)\*(?: \(not tested: (.+?)\))?(?=;|$)", listed):
                    claim = claims[study][says]
                    assert reason == ("" if claim.holds else claim.note.rstrip(".")), place
                    named.add((study, says))
    assert {(study, says) for study, known in claims.items() for says in known} - named == set()
