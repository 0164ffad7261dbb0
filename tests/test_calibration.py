"""Optimiser and rate are chosen on validation, once, for each variant of a study; studies on other images."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from convatlas import calibrate, plan
from convatlas.core.composing import conf_dir, hydra_ready
from convatlas.core.errors import UserError
from convatlas.studies.calibration import Tried, choices, read_calibration
from convatlas.studies.figures import check_figures
from convatlas.studies.planning import (
    NothingToReplaceError,
    check_claims,
    load_study,
    planned_runs,
    study_names,
)
from convatlas.training import calibration
from helpers import ROOT

ADAMW, SGD = "recipe/optimizer=adamw recipe.optimizer.lr=0.003", "recipe/optimizer=sgd recipe.optimizer.lr=0.01"
STUDY = """
name: two
title: Two
question: Which?
source: none
overrides: {laptop: [data=digits, recipe=comparison, recipe.epochs=1, recipe.batch_size=256]}
variants:
  a: {title: A, overrides: [model=lenet5]}
  b: {title: B, overrides: [model=vgg_small, model.width=0.25]}
  alone: {title: Alone, overrides: [model=lenet5, data=digits_0_to_4]}
  own: {title: Own, overrides: [model=lenet5, recipe.optimizer.lr=0.2]}
  later: {title: Later, overrides: [model=lenet5, weights=runs/two/a]}
printed: {}
claims: []
deviations: []
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with our conf/ and a study of two variants that are compared, at two choices."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "conf/study/two.yaml").write_text(STUDY)
    scale = yaml.safe_load((tmp_path / "conf/scale/laptop.yaml").read_text())
    scale["grid"] = [ADAMW.split(), SGD.split()]
    (tmp_path / "conf/scale/laptop.yaml").write_text(yaml.safe_dump(scale))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["convatlas.calibrate", "study=two"])
    assert conf_dir().resolve() == tmp_path / "conf"
    return tmp_path


def fake(monkeypatch: pytest.MonkeyPatch, scores: dict[tuple[str, str], float | None]) -> list[tuple[str, str]]:
    """Answer for trainings; returns the list of those that were asked for."""
    asked: list[tuple[str, str]] = []

    def validation_scores(configs: list[Any]) -> Any:
        for number, config in enumerate(configs):
            optimizer = config.recipe.optimizer["_target_"].rpartition(".")[2].lower()
            asked.append((config.variant, optimizer))
            yield number, calibration.Score(scores[asked[-1]], True)

    monkeypatch.setattr(calibration, "validation_scores", validation_scores)
    monkeypatch.setattr(calibrate, "prepare_as_planned", lambda _data, _page: None)
    return asked


SCORES = {("a", "adamw"): 0.6, ("a", "sgd"): 0.7, ("b", "adamw"): 0.5, ("b", "sgd"): None}


def test_the_best_on_validation_is_taken_and_every_plan_has_it(project, monkeypatch) -> None:
    asked = fake(monkeypatch, SCORES)
    calibrate.main()
    assert asked == [*SCORES]  # neither what is compared with nothing, nor what begins with trained weights
    assert choices("two") == {"a": SGD.split(), "b": ADAMW.split()}
    assert read_calibration("two").variants["b"].scores == {ADAMW: 0.5, SGD: None}
    with hydra_ready():
        runs = planned_runs(*load_study("two", "laptop"), [0], ())
    rates = {run.config.variant: run.config.recipe.optimizer for run in runs}
    assert rates["a"]["_target_"] == "torch.optim.SGD"
    assert rates["b"]["_target_"] == rates["alone"]["_target_"] == "torch.optim.AdamW"
    assert [rate["lr"] for rate in rates.values()] == [0.01, 0.003, 0.003, 0.2, 0.003]  # what a variant states holds
    with hydra_ready():
        runs = planned_runs(*load_study("two", "laptop"), [0], ["recipe.optimizer.lr=0.5"])
    assert {run.config.recipe.optimizer["lr"] for run in runs} == {0.5}  # and what a user says, for all


def test_what_was_tried_is_not_tried_again_unless_the_variant_changed(project, monkeypatch) -> None:
    asked = fake(monkeypatch, SCORES)
    calibrate.main()
    asked.clear()
    calibrate.main()
    assert asked == []
    file = project / "conf/study/two.yaml"
    file.write_text(file.read_text().replace("model.width=0.25", "model.width=0.5"))
    calibrate.main()
    assert asked == [("b", "adamw"), ("b", "sgd")]
    asked.clear()
    monkeypatch.setattr(sys, "argv", ["convatlas.calibrate", "study=two", "anew=true"])
    calibrate.main()
    assert asked == [*SCORES]


def test_of_another_grid_what_is_new_is_tried(project, monkeypatch) -> None:
    asked = fake(monkeypatch, SCORES)
    calibrate.main()
    asked.clear()
    scale = yaml.safe_load((project / "conf/scale/laptop.yaml").read_text())
    higher = SGD.replace("0.01", "0.1")
    scale["grid"] = [ADAMW.split(), higher.split()]
    (project / "conf/scale/laptop.yaml").write_text(yaml.safe_dump(scale))
    calibrate.main()
    assert asked == [("a", "sgd"), ("b", "sgd")]
    assert read_calibration("two").variants["a"].scores == {ADAMW: 0.6, higher: 0.7}


def test_a_variant_that_diverges_with_every_choice_is_named(project, monkeypatch) -> None:
    fake(monkeypatch, {**SCORES, ("b", "adamw"): None})
    with pytest.raises(UserError, match=r"two/b diverged with every choice .*; add a lower rate"):
        calibrate.main()
    assert read_calibration("two").variants["a"].chosen == SGD


def test_trainings_give_their_best_validation_score(project) -> None:
    """The real thing: two nets at two rates, side by side, without a test and without anything left behind."""
    calibrate.main()
    tried = read_calibration("two").variants
    assert all(0 < score < 1 for each in tried.values() for score in each.scores.values())
    assert {name: max(each.scores, key=each.scores.get) for name, each in tried.items()} == {
        name: each.chosen for name, each in tried.items()
    }
    assert not list((project / ".work").rglob("*.ckpt"))
    assert not (project / "runs").exists()


def killed(_numbered: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_training_that_is_killed_ends_the_choice_in_a_sentence(project, monkeypatch) -> None:
    monkeypatch.setattr(calibration, "_score", killed)
    with pytest.raises(UserError, match=r"ended from outside\. The same command goes on .* memory ran out"):
        calibrate.main()
    assert not multiprocessing.active_children()


def deaf(_numbered: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


@pytest.mark.parametrize("during", ["the fork", "training"])
def test_ctrl_c_ends_the_trainings(project, monkeypatch, during: str) -> None:
    monkeypatch.setattr(calibration, "_score", deaf)
    press = [lambda: os.kill(os.getpid(), signal.SIGINT)]
    if during == "the fork":  # where Python loses an exception
        os.register_at_fork(after_in_parent=lambda: press.pop()() if press else None)
    else:
        after_forks = threading.Timer(1, press.pop())
        os.register_at_fork(after_in_parent=lambda: None if after_forks.ident else after_forks.start())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            calibrate.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not multiprocessing.active_children()


def test_a_record_that_is_none_is_named(project) -> None:
    (project / "conf/calibration").mkdir(exist_ok=True)
    (project / "conf/calibration/two.yaml").write_text("seed: one\n")
    with pytest.raises(UserError, match=r"two\.yaml: seed='one' is not valid"):
        read_calibration("two")


def test_other_images_take_the_place_of_made_ones(project) -> None:
    (project / "conf/study/two.yaml").write_text(STUDY.replace("data=digits,", "data=cluttered_digits,"))
    with hydra_ready():
        study, scale = load_study("two-cifar10", "laptop")
        runs = {run.key: run.config for run in planned_runs(study, scale, [0], ())}
    assert study.title == "Two on photographs (CIFAR-10)"
    assert runs["two-cifar10/a"].data.name == "cifar10_10k"
    assert runs["two-cifar10/a"].model["in_channels"] == 3
    assert "two-cifar10/alone" not in runs, "its data are the same, and so it would be trained a second time"
    assert runs["two-cifar10/later"].weights == "runs/two-cifar10/a"


@pytest.mark.parametrize("images", ["cifar10", "bccd", "sunnybrook"])
def test_studies_on_other_images_have_what_they_name(images: str) -> None:
    found = 0
    with hydra_ready():
        for name in study_names():
            try:
                study, _ = load_study(f"{name}-{images}", "laptop")
            except NothingToReplaceError:
                continue
            found += 1
            check_claims(study)
            check_figures(study.figures, list(study.variants), study.printed, name)
            assert all({step.before, step.after} <= set(study.variants) for step in study.steps)
            for variant in study.variants.values():
                overrides = " ".join([*study.overrides["laptop"], *variant.overrides, *variant.laptop])
                assert f"data={images}" in overrides
    assert found >= {"cifar10": 20, "bccd": 5, "sunnybrook": 2}[images]


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("two-cifar", "laptop", r"images=cifar: there is none of that name\. Did you mean cifar10\?"),
        ("overview-cifar10", "paper", "images=cifar10 is for scale=laptop"),
        ("two-cifar10", "laptop", "has nothing in the place of the data of the study two"),
    ],
)
def test_images_that_do_not_fit_are_one_sentence(project, name: str, scale: str, message: str) -> None:
    with hydra_ready(), pytest.raises(UserError, match=message):
        load_study(name, scale)


def test_all_studies_on_other_images_are_those_that_can_be(project, monkeypatch) -> None:
    monkeypatch.setattr(plan, "study_names", lambda: ["overview", "two"])
    assert plan.on_images(["two"], ["made"], "laptop") == ["two"]
    assert plan.on_images(["all"], ["made", "cifar10"], "laptop") == ["overview", "two", "overview-cifar10"]
    with pytest.raises(UserError, match="nothing in the place"):
        plan.on_images(["two"], ["cifar10"], "laptop")


@pytest.mark.parametrize("file", sorted((ROOT / "conf/calibration").glob("*.yaml")), ids=lambda file: file.stem)
def test_what_is_recorded_belongs_to_the_study_as_it_is(file: Path) -> None:
    tried = read_calibration(file.stem)
    with hydra_ready():
        study, scale = load_study(file.stem, "laptop")
        runs = {
            run.config.variant: run
            for run in calibrate.compared(study, planned_runs(study, calibrate.bare(scale), [tried.seed], ()))
        }
    grid = {" ".join(choice) for choice in scale.grid}
    assert set(tried.variants) == set(runs)
    for key, each in tried.variants.items():
        assert isinstance(each, Tried)
        assert set(each.scores) == grid
        assert each.config == calibrate.identity(runs[key].config), (
            f"run `python -m convatlas.calibrate study={file.stem}`"
        )
