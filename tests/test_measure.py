"""How fast a run answers: a line for each setting, a table and a picture."""

from __future__ import annotations

import json

import pytest

from convatlas.core.record import RunRecord, Speeds
from convatlas.measure import cells, seeds_of
from convatlas.reporting.latency import latency_chart
from convatlas.training.run import train
from helpers import assert_one_sentence

ROW = {
    "run": "runs/a", "net": "lenet5", "task": "classification", "score": 0.975, "runtime": "torch", "threads": 1,
    "batch": 8, "batches": 30, "p50": 0.002, "p90": 0.0025, "p99": 0.004,
    "images_per_second": 3200.0, "megabytes": 17.2,
}  # fmt: skip


def test_a_study_stands_for_the_first_seed_of_each_variant(tmp_path):
    for name in ("a/seed=1", "a/seed=0", "b/seed=2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    assert seeds_of(tmp_path) == [tmp_path / "a" / "seed=0", tmp_path / "b" / "seed=2"]
    assert seeds_of(tmp_path / "a") == [tmp_path / "a" / "seed=0"]
    assert seeds_of(tmp_path / "a" / "seed=1") == [tmp_path / "a" / "seed=1"]


def test_times_are_printed_in_milliseconds_and_the_score_in_per_cent():
    assert cells(ROW) == ["lenet5", "torch", "1", "8", "2", "2.5", "4", "3,200", "17", "97.50 %"]


def test_the_picture_names_each_net_and_leaves_those_without_a_score_out():
    picture = latency_chart([ROW, ROW | {"net": "vgg", "p50": 0.01}, ROW | {"net": "nothing", "score": None}])
    assert all(word in picture for word in ("lenet5", "vgg", "classification, torch, threads 1, batch 8"))
    assert "nothing" not in picture


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run=runs/nowhere"], "run=runs/nowhere: there is no finished run"),
        (["run=runs/nowhere", "runtime=tensorrt"], "runtime"),
        (["run=runs/nowhere", "threads=0"], "threads"),
        ([], "run is missing"),
        (["run=runs/nowhere", "record=true"], "run=runs/nowhere: record=true takes the folder of a study"),
        (["run=runs/nowhere", "record=true", "batch=1,8"], "record=true takes one study, one runtime, one number"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(enter, words, sentence):
    assert_one_sentence(enter("measure", *words), sentence)


@pytest.mark.slow
def test_every_runtime_measures_the_same_run(enter, compose, tmp_path):
    folder = train(compose("recipe.epochs=1"), strict=True)[0]
    options = ["runtime=torch,compile,onnxruntime", "threads=1,2", "batch=1,8", "seconds=0.05", "format=json"]
    entered = enter("measure", f"run={folder}", *options, f"output_dir={tmp_path / 'out'}")
    assert entered.status == 0, entered.err
    rows = json.loads(entered.out)
    assert len(rows) == 3 * 2 * 2
    for row in rows:
        assert row["batches"] >= 30
        assert 0 < row["p50"] <= row["p90"] <= row["p99"]
        assert row["images_per_second"] > 0
    assert json.loads((tmp_path / "out" / "latency.json").read_text()) == rows
    assert len((tmp_path / "out" / "latency.csv").read_text().splitlines()) == 13
    assert (tmp_path / "out" / "latency.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_the_nets_of_a_study_take_turns_and_its_folder_keeps_their_seconds(enter, compose, tmp_path):
    study = tmp_path / "study"
    nets = ("googlenet_small", "lenet5_modern")
    for net in nets:
        config = compose("recipe.epochs=1", f"model={net}", seeds=(0, 1))
        train(config.model_copy(update={"output_dir": study / net}), strict=True)
    entered = enter("measure", f"run={study}", "record=true", "seconds=0.2")
    assert entered.status == 0, entered.err
    found = Speeds.of_study(study)
    assert sorted(found.nets) == [f"{net}/seed={seed}" for net in nets for seed in (0, 1)]
    for seed in (0, 1):
        records = {net: RunRecord.read(study / net / f"seed={seed}") for net in nets}
        taken = {net: found.of(f"{net}/seed={seed}", record) for net, record in records.items()}
        assert 0 < taken["lenet5_modern"].latency < taken["googlenet_small"].latency
        assert 0 < 2 * taken["lenet5_modern"].training_step < taken["googlenet_small"].training_step
        assert found.of(f"googlenet_small/seed={seed}", records["lenet5_modern"]) is None  # another identity
