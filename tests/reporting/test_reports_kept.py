"""Reports pile up: one stays while its runs are there, and runs without a plan get one of their own."""

import json
import shutil

import pytest
import yaml
from made_runs import MadeVariant, accuracies, make_run, make_study

from convatlas.core.errors import UserError
from convatlas.reporting.report import write_index, write_report
from helpers import assert_one_sentence


@pytest.fixture
def two_plans(tmp_path):
    """Write the reports of a first plan, then those of another."""
    for name in ("overview", "later"):
        study_file, runs = make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9, 0.8))}, name=name)
        write_report(study_file, runs, tmp_path / "reports" / "studies" / name)
        write_index(tmp_path / "plan", runs, tmp_path / "reports")
        if name == "overview":
            shutil.rmtree(tmp_path / "plan")
    return tmp_path


def index_of(folder):
    return (folder / "reports" / "index.html").read_text()


def test_a_report_of_an_earlier_plan_stays_and_the_index_lists_it(two_plans):
    shown = index_of(two_plans)
    assert (two_plans / "reports" / "studies" / "overview" / "index.html").is_file()
    assert shown.index("studies/later/index.html") < shown.index("studies/overview/index.html")
    assert shown.count("kept from an earlier plan") == 1
    assert shown.count("85.00") == 2  # the headline of both


def test_a_report_goes_with_its_runs_and_what_is_not_ours_is_not_deleted(two_plans):
    shutil.rmtree(two_plans / "runs" / "overview")
    mine = two_plans / "reports" / "studies" / "overview" / "notes.txt"
    mine.touch()
    with pytest.raises(UserError, match=r"holds notes\.txt, which is yours"):
        write_index(two_plans / "plan", two_plans / "runs", two_plans / "reports")
    mine.unlink()
    write_index(two_plans / "plan", two_plans / "runs", two_plans / "reports")
    assert not mine.parent.exists()
    assert "studies/overview" not in index_of(two_plans)


def test_a_kept_report_can_be_written_again(two_plans, enter, monkeypatch):
    monkeypatch.chdir(two_plans)
    page = two_plans / "reports" / "studies" / "overview" / "index.html"
    before = page.read_bytes()
    page.unlink()
    assert enter("report", "overview").status == 0
    assert page.read_bytes() == before
    assert_one_sentence(enter("report", "overveiw"), "overveiw", "Did you mean overview")


def test_runs_that_were_trained_alone_get_a_report(compose, enter, monkeypatch, tmp_path):
    for name, rate, score in (("lenet5-digits-aa", 0.1, 0.7), ("lenet5-digits-bb", 0.2, 0.9)):
        config = compose(f"recipe.optimizer.lr={rate}", folder=f"runs/adhoc/{name}")
        for seed in (0, 1):
            folder = tmp_path / "runs" / "adhoc" / name / f"seed={seed}"
            make_run(folder, MadeVariant(test={seed: {"accuracy": score}}), seed)
            (folder / "config.yaml").write_text(yaml.safe_dump(config.plain()))
    monkeypatch.chdir(tmp_path)
    entered = enter("report", "runs=runs/adhoc/*", "format=json")
    assert entered.status == 0, entered.err
    assert json.loads(entered.out) == ["reports/studies/adhoc/index.html", "reports/index.html"]
    page = (tmp_path / "reports" / "studies" / "adhoc" / "index.html").read_text()
    assert "LeNet-5 (modern simplification), lr 0.2" in page
    assert "studies/adhoc/index.html" in index_of(tmp_path)
    assert_one_sentence(enter("report", "runs=runs/adhoc/nothing"), "names no finished run")
    assert_one_sentence(enter("report", f"runs={tmp_path.parent}/*/run"), "names no finished run")
