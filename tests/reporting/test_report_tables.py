import csv
import io
import math

import pytest
from made_runs import COSTS, MadeVariant, accuracies, make_study, rising_history, write_latencies

from convatlas.core.metrics import metric
from convatlas.core.statistics import spread
from convatlas.reporting.reading import read_study
from convatlas.reporting.tables import as_csv, further_table, leaders, main_table, records
from convatlas.reporting.trade_offs import trade_offs
from convatlas.reporting.wording import duration


def cells(study, title):
    table = main_table(study.groups[0])
    return next(column.cells for column in table.columns if column.title == title)


def test_the_table_holds_hand_computed_means_and_deviations(tmp_path):
    made = {
        "a": MadeVariant(test=accuracies(0.90, 0.92, 0.97)),  # mean 0.93, deviation sqrt(0.0013) = 0.036056
        "b": MadeVariant(test=accuracies(0.80)),
        "c": MadeVariant(test={}),
    }
    found = cells(read_study(*make_study(tmp_path, made)), "accuracy, %")
    assert [(cell.text, cell.std) for cell in found] == [("93.00", "3.61"), ("80.00", ""), ("–", "")]


def test_the_csv_holds_them_in_full(tmp_path):
    made = {"a": MadeVariant(test=accuracies(0.90, 0.92, 0.97)), "b": MadeVariant(test=accuracies(0.80))}
    first, second = csv.DictReader(io.StringIO(as_csv(records(read_study(*make_study(tmp_path, made))))))
    assert float(first["test_accuracy_mean"]) == pytest.approx(0.93, abs=1e-9)
    assert float(first["test_accuracy_std"]) == pytest.approx(math.sqrt(0.0013), abs=1e-9)
    assert (first["seeds_planned"], first["seeds_finished"]) == ("3", "3")
    assert (second["test_accuracy_mean"], second["test_accuracy_std"]) == ("0.8", "")
    assert (first["train_seconds_mean"], first["train_seconds_std"]) == ("31", "1")
    assert (first["parameters"], first["macs"], first["macs_inference"]) == ("272474", "41000000", "40813184")


def test_large_counts_are_written_in_full(tmp_path):
    made = {"a": MadeVariant(test=accuracies(0.9), costs=COSTS | {"macs": 15_346_630_656})}
    assert ",15346630656," in as_csv(records(read_study(*make_study(tmp_path, made))))


def test_the_best_epoch_and_the_last_stand_beside_each_other(tmp_path):
    history = {0: rising_history("val/accuracy", (0.5, 0.75, 0.7)), 1: rising_history("val/accuracy", (0.5, 0.6, 0.65))}
    study = read_study(*make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.6, 0.6), history=history)}))
    best, last = cells(study, "at best epoch, %")[0], cells(study, "at last epoch, %")[0]
    assert (best.text, last.text, cells(study, "best epoch")[0].text) == ("70.00", "67.50", "2.5")


def test_costs_that_were_not_counted_are_a_dash(tmp_path):
    costs = COSTS | {"macs": None, "macs_inference": None, "activation_bytes": None}
    study = read_study(*make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9), costs=costs)}))
    assert cells(study, "MACs")[0].text == "–"
    assert cells(study, "saved for backward, MB at batch 64")[0].text == "–"
    assert cells(study, "weights, MB")[0].text == "1.10"


def test_latencies_measured_alone_have_a_column_and_a_chart_where_there_are_any(tmp_path):
    made = {key: MadeVariant(test=accuracies(0.9)) for key in "abc"}
    study_file, runs = make_study(tmp_path, made)
    before = read_study(study_file, runs).groups[0]
    assert "latency alone" not in [column.title for column in main_table(before).columns]
    write_latencies(runs / "overview", {"a/seed=0": 0.001, "b/seed=0": 0.003})
    study = read_study(study_file, runs)
    assert [cell.text for cell in cells(study, "latency alone")] == [duration(0.001), duration(0.003), "–"]
    assert [cell.text for cell in cells(study, "training step alone")] == [duration(0.01), duration(0.03), "–"]
    assert [row["latency_alone_mean"] for row in records(study)] == [0.001, 0.003, None]
    titles = [chart.title for chart in trade_offs(study.groups[0])]
    assert titles[-2:] == [f"Accuracy against {what} measured alone" for what in ("latency", "training step")]
    assert len(trade_offs(before)) == len(titles) - 2


def test_different_batches_get_a_column(tmp_path):
    made = {
        "a": MadeVariant(test=accuracies(0.9)),
        "b": MadeVariant(test=accuracies(0.9), costs=COSTS | {"batch_size": 128}),
    }
    study = read_study(*make_study(tmp_path, made))
    assert [cell.text for cell in cells(study, "batch")] == ["64", "128"]
    assert [cell.text for cell in cells(study, "saved for backward, MB")] == ["19.3", "19.3"]


def test_a_diverged_seed_is_shown_and_sorts_last(tmp_path):
    made = {"a": MadeVariant(test={0: {"accuracy": 0.9}, 1: {"accuracy": math.nan}})}
    cell = cells(read_study(*make_study(tmp_path, made)), "accuracy, %")[0]
    assert (cell.text, cell.order, cell.leading) == ("not finite", None, False)


def test_what_noise_could_set_apart_leads_together():
    best, near, far, single = [0.90, 0.92], [0.89, 0.91], [0.70, 0.71], [0.91]
    assert leaders([spread(values) for values in (far, best, near, single)], metric("accuracy")) == [
        False,
        True,
        True,
        True,
    ]
    assert leaders([spread([0.91]), spread([0.90, 0.92]), None], metric("accuracy")) == [True, True, False]


def test_alone_nothing_leads():
    assert leaders([None, spread([0.9, 0.8])], metric("accuracy")) == [False, False]


def test_of_errors_the_lowest_leads(tmp_path):
    made = {name: MadeVariant(test={0: {"accuracy": 0.9, "loss": loss}}) for name, loss in (("a", 0.5), ("b", 0.3))}
    column = further_table(read_study(*make_study(tmp_path, made)).groups[0]).columns[0]
    assert (column.title, column.lower_first) == ("loss", True)
    assert [cell.leading for cell in column.cells] == [False, True]


def test_mixed_tasks_share_one_csv_with_gaps(tmp_path):
    made = {
        "a": MadeVariant(test=accuracies(0.9)),
        "b": MadeVariant(test={0: {"dice": 0.8}}, task="segmentation", data="hearts", monitor="val/dice"),
    }
    first, second = csv.DictReader(io.StringIO(as_csv(records(read_study(*make_study(tmp_path, made))))))
    assert (first["score"], first["test_accuracy_mean"], first["test_dice_mean"]) == ("accuracy", "0.9", "")
    assert (second["score"], second["test_accuracy_mean"], second["test_dice_mean"]) == ("dice", "", "0.8")


def test_points_are_earned_by_each_seed(tmp_path):
    test = {seed: {"accuracy": 0.5, "f1_macro": f1} for seed, f1 in enumerate((0.971, 0.97, 0.8299))}
    variants = {"a": MadeVariant(test=test), "b": MadeVariant(test={})}
    grading = {"metric": "f1_macro", "points": {"0.83": 1, "0.97": 15, "0.96": 14}}
    study = read_study(*make_study(tmp_path, variants, grading=grading))
    [column] = [column for column in main_table(study.groups[0]).columns if column.title == "points for macro F1"]
    assert [(cell.text, cell.std) for cell in column.cells] == [("10.0", "8.7"), ("–", "")]
    assert column.meaning.startswith("15 from 97.00% macro F1 on the test split, 1 from 83.00%, none below")
    assert records(study)[0]["points_mean"] == 10


def test_a_group_without_the_graded_metric_has_no_points(tmp_path):
    grading = {"metric": "f1_macro", "points": {"0.9": 1}}
    study = read_study(*make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9))}, grading=grading))
    assert not any("points" in column.title for column in main_table(study.groups[0]).columns)
