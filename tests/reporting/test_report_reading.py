import json
import math

import pytest
from made_runs import MadeVariant, accuracies, make_study

from convatlas.core.errors import UserError
from convatlas.core.files import write_yaml
from convatlas.reporting.reading import read_studies, read_study
from convatlas.studies.claims import Quantity


def test_a_seed_without_metrics_is_missing_and_the_rest_stands(tmp_path):
    study_file, runs = make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9, 0.8, 0.7))})
    (runs / "overview" / "a" / "seed=1" / "metrics.json").unlink()
    study = read_study(study_file, runs)
    variant = study.variants[0]
    assert [run.seed for run in variant.runs] == [0, 2]
    assert variant.missing == (1,)
    assert (study.runs_finished, study.runs_planned) == (2, 3)


def test_a_failed_seed_is_told_apart_from_one_that_has_not_run(tmp_path):
    made = {"a": MadeVariant(test=accuracies(0.9), failures={2: "The loss is not finite."})}
    study = read_study(*make_study(tmp_path, made))
    variant = study.variants[0]
    assert (variant.missing, variant.not_run, variant.failures) == ((1, 2), (1,), {2: "The loss is not finite."})
    assert (study.runs_finished, study.runs_failed, study.runs_planned) == (1, 1, 3)


def test_a_seed_that_finished_after_all_has_not_failed(tmp_path):
    study_file, runs = make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9))})
    (runs / "overview" / "a" / "seed=0" / "failure.json").write_text('{"error": "an earlier one"}')
    assert read_study(study_file, runs).variants[0].failures == {}


def test_a_failure_without_its_reason_is_named(tmp_path):
    study_file, runs = make_study(tmp_path, {"a": MadeVariant(test={}, failures={0: ""})})
    with pytest.raises(UserError, match=r"seed=0/failure\.json does not say what failed; delete this run's folder"):
        read_study(study_file, runs)


def test_folders_that_the_plan_does_not_name_are_not_read(tmp_path):
    study_file, runs = make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9, 0.8))}, seeds=[0])
    (runs / "overview" / "left_over" / "seed=0").mkdir(parents=True)
    study = read_study(study_file, runs)
    assert [(variant.key, len(variant.runs)) for variant in study.variants] == [("a", 1)]


def test_groups_are_the_pairs_of_task_and_data(tmp_path):
    variants = {
        "a": MadeVariant(test={}),
        "b": MadeVariant(test={}, data="cells"),
        "c": MadeVariant(test={}),
        "d": MadeVariant(test={}, task="detection", data="cells"),
    }
    study = read_study(*make_study(tmp_path, variants))
    found = [(group.task, group.data, [variant.key for variant in group.variants]) for group in study.groups]
    assert found == [
        ("classification", "digits", ["a", "c"]),
        ("classification", "cells", ["b"]),
        ("detection", "cells", ["d"]),
    ]


@pytest.mark.parametrize(
    ("task", "test", "monitor", "score"),
    [
        ("classification", {"loss": 0.1, "accuracy": 0.9}, "val/f1_macro", "accuracy"),
        ("detection", {"map": 0.5, "map_50": 0.7}, "val/map_50", "map_50"),
        ("detection", {"map": 0.5}, "val/map", "map"),
        ("segmentation", {"iou": 0.8, "dice": 0.9}, "val/dice", "dice"),
        ("classification", {"f1_macro": 0.8}, "val/f1_macro", "f1_macro"),
    ],
)
def test_the_score_is_the_tasks_own_and_else_what_is_monitored(tmp_path, task, test, monitor, score):
    study = read_study(*make_study(tmp_path, {"a": MadeVariant(test={0: test}, task=task, monitor=monitor)}))
    assert study.groups[0].score == score


def test_average_precision_of_sizes_that_do_not_occur_is_no_result(tmp_path):
    test = {0: {"map_50": 0.7, "map_small": -1.0, "loss": -1.0}}
    study = read_study(*make_study(tmp_path, {"a": MadeVariant(test=test, task="detection", monitor="val/map_50")}))
    assert study.groups[0].test_metrics == ["map_50", "loss"]


@pytest.mark.parametrize(("values", "seed"), [((0.7, 0.9, 0.8), 2), ((0.7, 0.9, 0.8, 0.6), 0), ((0.5,), 0)])
def test_the_median_run_is_the_lower_middle_one(tmp_path, values, seed):
    made = {"a": MadeVariant(test=accuracies(*values))}
    study = read_study(*make_study(tmp_path, made, seeds=range(len(values))))
    assert study.variants[0].median_run("accuracy").seed == seed


def test_two_variants_of_one_title_are_told_apart(tmp_path):
    made = {key: MadeVariant(test={}, title="ResNet") for key in ("a", "b")}
    study = read_study(*make_study(tmp_path, made))
    assert [variant.title for variant in study.variants] == ["ResNet (a)", "ResNet (b)"]


def test_an_empty_cell_of_the_history_is_nan(tmp_path):
    study_file, runs = make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9))})
    (runs / "overview" / "a" / "seed=0" / "history.csv").write_text("epoch,val/accuracy\n1,\n2,0.5\n")
    history = read_study(study_file, runs).variants[0].runs[0].record.columns
    assert history["epoch"] == [1, 2]
    assert math.isnan(history["val/accuracy"][0])


def test_a_run_with_metrics_alone_is_read(tmp_path):
    study_file, runs = make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9))})
    folder = runs / "overview" / "a" / "seed=0"
    for name in ("timing.json", "environment.json", "history.csv", "predictions.parquet"):
        (folder / name).unlink()
    study = read_study(study_file, runs)
    run = study.variants[0].runs[0]
    assert (run.test("accuracy"), run.seconds("train_seconds"), run.record.history) == (0.9, None, ())
    assert study.groups[0].test_images is None


@pytest.mark.parametrize("name", ["metrics.json", "history.csv"])
def test_a_broken_file_is_named_with_a_remedy(tmp_path, name):
    study_file, runs = make_study(tmp_path, {"a": MadeVariant(test=accuracies(0.9))})
    broken = runs / "overview" / "a" / "seed=0" / name
    broken.write_text("{not json\nx,y\n")
    with pytest.raises(UserError, match=r"delete this run's folder") as raised:
        read_study(study_file, runs)
    assert str(broken) in str(raised.value)


def test_a_plan_without_studies_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no study; run `dvc repro resolve`"):
        read_studies(tmp_path, tmp_path)


def test_the_seeds_of_the_resolved_config_count(tmp_path):
    study_file, runs = make_study(tmp_path, {"a": MadeVariant(test={})}, seeds=[0, 1])
    resolved = study_file.with_suffix("") / "a.yaml"
    resolved.write_text(json.dumps({"config": {"seeds": [5], "data": {"name": "digits", "task": "classification"}}}))
    assert read_study(study_file, runs).variants[0].seeds == (5,)


@pytest.mark.parametrize("key", ["..", ".", "../other", "/etc", "a\\b", ""])
def test_no_name_in_a_plan_leads_out_of_the_folder_of_runs(tmp_path, key):
    plan = tmp_path / "plan"
    for where, entry in {"variants": {"variants": {key: {}}}, "name": {"name": key, "variants": {"a": {}}}}.items():
        write_yaml(plan / f"{where}.yaml", entry)
        with pytest.raises(UserError, match=rf"plan/{where}\.yaml: the key {where}.* cannot be the name of a folder"):
            read_study(plan / f"{where}.yaml", tmp_path / "runs")


WRONG_PLANS = {
    "null": (None, "the file is wrong"),
    "a list": ([1], "the file is wrong"),
    "no variants": ({"variants": {}}, "the key variants is wrong"),
    "variants that are null": ({"variants": None}, "the key variants is missing"),
    "a variant that is a word": ({"variants": {"a": "lenet"}}, "the key variants.a is wrong"),
    "seeds that are no numbers": ({"variants": {"a": None}, "seeds": ["x"]}, "the key seeds.0 is wrong"),
    "a figure without its axis": (
        {"variants": {"a": None}, "figures": [{"title": "x", "curves": {}}]},
        "the key figures.0.y is missing",
    ),
}


@pytest.mark.parametrize(("plan", "words"), WRONG_PLANS.values(), ids=WRONG_PLANS)
def test_a_wrongly_shaped_plan_is_named_with_a_remedy(tmp_path, plan, words):
    write_yaml(tmp_path / "mini.yaml", plan)
    with pytest.raises(UserError) as raised:
        read_study(tmp_path / "mini.yaml", tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'mini.yaml'}: {words}")
    assert message.endswith("run `dvc repro resolve`, which writes it.")
    assert "\n" not in message


def test_a_cost_of_zero_is_a_cost(tmp_path):
    made = MadeVariant(test=accuracies(0.9), costs={"macs_of_weights": 0})
    [run] = read_study(*make_study(tmp_path, {"a": made})).variants[0].runs
    values = [run.value(Quantity(name, "a")) for name in ("macs_of_weights", "train_seconds", "epoch_seconds", "x")]
    assert values == [0, 30, None, None]
