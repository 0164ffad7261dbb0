"""What a finished seed leaves: which epoch is its best, and when its files count as whole."""

import math
import shutil
from contextlib import nullcontext

import pytest

from convatlas.core.errors import UserError
from convatlas.core.record import RunRecord
from convatlas.tasks.base import DivergedError
from convatlas.tasks.figures import confusion_matrix
from convatlas.training.results import best_row, check_converged, plain_text
from convatlas.training.run import train

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ((0.5, 0.9, 0.7), "max", 2),
        ((0.5, 0.9, 0.7), "min", 1),
        ((0.7, 0.9, 0.9), "max", 2),  # the first of equals
        ((NAN, 0.2, 0.1), "max", 2),
        ((NAN, 0.2, 0.1), "min", 3),
        ((NAN, NAN), "max", 1),
    ],
)
def test_the_best_epoch_is_the_first_with_the_best_value_and_never_nan_beside_one(values, mode, best):
    rows = [{"epoch": float(n), "val/x": value} for n, value in enumerate(values, start=1)]
    assert best_row(rows, "val/x", mode)["epoch"] == best


@pytest.mark.parametrize(
    ("losses", "scores", "words"),
    [
        ((1.0, NAN, 0.5), (0.5, 0.1, 0.9), None),  # it was recovered from
        ((1.0, NAN), (0.5, 0.1), "validation loss became nan in epoch 2"),
        ((math.inf, 0.5), (0.9, 0.5), "validation loss became inf in epoch 1"),
        ((1.0, 0.5), (NAN, 0.1), None),
        ((1.0, 0.5), (NAN, NAN), "val/x was finite in no epoch"),
        ((1.0, 0.5), (0.5, -math.inf), None),
    ],
)
def test_a_run_whose_validation_ends_in_no_number_has_diverged(losses, scores, words):
    rows = [{"epoch": n, "val/loss": a, "val/x": b} for n, (a, b) in enumerate(zip(losses, scores, strict=True), 1)]
    with nullcontext() if words is None else pytest.raises(DivergedError, match=words):
        check_converged(rows, "val/x", "max")


def test_a_run_with_a_broken_or_missing_file_is_not_finished(compose, tmp_path, capsys):
    config = compose("recipe.epochs=1")
    (folder,) = train(config, strict=True)
    shutil.copytree(folder, tmp_path / "whole")
    may_be_missing = {"timing.json", "environment.json"}
    for name in ("best.ckpt", "history.csv", "identity.json", "metrics.json", "predictions.parquet", *may_be_missing):
        (folder / name).write_bytes((folder / name).read_bytes()[:-20])
        with pytest.raises(UserError, match=rf"{name}.*; delete this run's folder and train it again\."):
            train(config, strict=True)
        (folder / name).unlink()
        if name not in may_be_missing | {"metrics.json"}:
            with pytest.raises(UserError, match=rf"{name} is missing"):
                train(config, strict=True)
        shutil.copy2(tmp_path / "whole" / name, folder / name)
    (folder / "history.csv").write_text("")
    assert train(config, strict=False) == [folder]  # in the pipeline it is trained again
    assert "It is trained again now" in capsys.readouterr().out
    assert RunRecord.read(folder).history == RunRecord.read(tmp_path / "whole").history


@pytest.mark.parametrize("names", [["$5_{x $", "\\frac$$"], ["\N{CAT FACE}", "x" * 250]], ids=["dollars", "long"])
@pytest.mark.filterwarnings("error::UserWarning")
def test_names_are_drawn_as_they_are(tmp_path, names):
    with plain_text():
        confusion_matrix([0, 1], [0, 1], names).savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_a_picture_costs_no_run(compose, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr("convatlas.tasks.classification.ClassificationTask.figures", broken)
    (folder,) = train(compose("recipe.epochs=1"), strict=True)
    assert (folder / "metrics.json").is_file()
    assert "no font" in capsys.readouterr().err
