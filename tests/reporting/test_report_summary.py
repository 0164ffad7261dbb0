import csv
import json

import pytest
from made_runs import MadeVariant, accuracies, make_study, rising_history

from convatlas.reporting.report import write_index, write_summary


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
    for write in (write_summary, write_index):
        write(study_file.parent, runs, tmp_path / "reports")
    return tmp_path / "reports"


def test_the_summary_has_a_few_numbers_a_task(reports):
    assert json.loads((reports / "summary.json").read_text()) == {
        "overview": {
            "classification": {
                "variants": 3,
                "runs_finished": 3,
                "train_seconds": 91.0,  # 30 + 31 + 30
                "best_score": 0.85,
                "mean_score": 0.725,
            },
            "segmentation": {
                "variants": 1,
                "runs_finished": 1,
                "train_seconds": 30.0,
                "best_score": 0.75,
                "mean_score": 0.75,
            },
        },
        "later": {"classification": {"variants": 1, "runs_finished": 0, "train_seconds": 0.0}},
    }


def test_two_data_sets_of_a_task_are_not_averaged(tmp_path):
    made = {"a": MadeVariant(test=accuracies(0.9)), "b": MadeVariant(test=accuracies(0.5), data="cells")}
    study_file, runs = make_study(tmp_path, made)
    write_summary(study_file.parent, runs, tmp_path)
    found = json.loads((tmp_path / "summary.json").read_text())["overview"]
    assert {name: figures["mean_score"] for name, figures in found.items()} == {
        "classification_digits": 0.9,
        "classification_cells": 0.5,
    }


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
