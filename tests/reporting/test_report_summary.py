import csv
import json
import re

import pytest
import yaml
from made_runs import MadeVariant, accuracies, make_study, rising_history

from convatlas.reporting.report import write_index, write_summary
from helpers import ROOT


@pytest.fixture
def reports(tmp_path):
    made = {
        "a": MadeVariant(test=accuracies(0.9, 0.8)),
        "b": MadeVariant(test=accuracies(0.6), history={0: rising_history("val/accuracy", (0.4, 0.5))}),
        "c": MadeVariant(test={}),
        "d": MadeVariant(test={0: {"dice": 0.75}}, task="segmentation", data="hearts", monitor="val/dice"),
    }
    study_file, runs = make_study(tmp_path, made)
    make_study(tmp_path, {"e": MadeVariant(test={})}, name="later", question="Is <b>it</b>?")
    write_summary(study_file.parent, runs, tmp_path / "reports", tmp_path / "metrics")
    write_index(study_file.parent, runs, tmp_path / "reports")
    return tmp_path / "reports"


def test_the_summary_has_few_figures_and_the_scores_every_variant(reports):
    assert json.loads((reports.parent / "metrics" / "summary.json").read_text()) == {
        "accuracy": 72.5,  # of 85 and 60
        "dice": 75.0,
        "finished": 4,
        "confirmed": 0,
        "refuted": 0,
        "train_minutes": 2.0,  # 30 + 31 + 30 + 30 seconds
    }
    scores = json.loads((reports.parent / "metrics" / "scores.json").read_text())
    assert scores == {"overview": {"a": 85.0, "b": 60.0, "d": 75.0}}


def test_the_committed_figures_are_those_that_the_page_of_the_study_prints():
    """`dvc metrics diff` in a fresh clone compares with them."""
    page = (ROOT / "docs" / "studies" / "overview.md").read_text()
    printed = re.findall(r"^\|[^|]+\| \d of \d \| ([\d.]+)", page, flags=re.MULTILINE)
    scores = json.loads((ROOT / "metrics" / "scores.json").read_text())["overview"]
    assert sorted(map(float, printed)) == sorted(scores.values())
    plan = yaml.safe_load((ROOT / "stages.yaml").read_text())["runs"]
    assert {f"overview/{key}" for key in scores} == set(plan)


def test_variants_have_one_row_each_where_they_have_a_score(reports):
    rows = list(csv.DictReader((reports / "variants.csv").open()))
    assert [(row["run"], row["score"], row["seeds"]) for row in rows] == [
        ("overview/a", "0.85", "2"),
        ("overview/b", "0.6", "1"),
        ("overview/d", "0.75", "1"),
    ]
    assert rows[1]["score_std"] == ""


def test_curves_have_the_mean_of_each_epoch(reports):
    rows = list(csv.DictReader((reports / "curves.csv").open()))
    assert [(row["epoch"], row["score"]) for row in rows if row["run"] == "overview/b"] == [("1", "0.4"), ("2", "0.5")]


def test_the_index_leads_to_every_study_with_its_headline(reports):
    page = (reports / "index.html").read_text()
    assert '<a href="studies/overview/index.html">Overview</a>' in page
    assert '<a href="studies/later/index.html">Later</a>' in page
    assert "<strong>85.00 ± 7.07\u202f%</strong>" in page
    assert "Is &lt;b&gt;it&lt;/b&gt;?" in page
    assert "<script" not in page
