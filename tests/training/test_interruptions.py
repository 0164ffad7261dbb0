"""A training that was killed, and goes on in another place, later, or after it had stopped: as if nothing had been."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupting import Killed

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.tasks.classification import ClassificationTask
from convatlas.training import run
from convatlas.training.run import train
from convatlas.training.work_folder import WorkFolder

BEST_FIRST = ("recipe.monitor=val/calibration_error", "recipe.epochs=3")
"""A net that knows nothing yet, and says so, is well calibrated: the best epoch is not the last."""


def killed(config: RunConfig, target: str, **arguments: int) -> None:
    callback = {"kill": {"_target_": f"interrupting.{target}", **arguments}}
    with pytest.raises(Killed):
        train(config.model_copy(update={"callbacks": callback}), strict=True)


@pytest.fixture(autouse=True)
def same_run_with_the_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training that a callback kills be the same training as the one without it."""
    identity = run.run_identity
    monkeypatch.setattr(
        run, "run_identity", lambda config, *rest: identity(config.model_copy(update={"callbacks": {}}), *rest)
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]


def assert_equal_runs(one: Path, other: Path) -> None:
    assert json.loads((one / "metrics.json").read_text()) == json.loads((other / "metrics.json").read_text())
    assert (one / "history.csv").read_bytes() == (other / "history.csv").read_bytes()
    expected = weights(one)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(other).items())


def test_a_killed_run_whose_folder_moved_is_tested_with_the_best_epoch(compose, tmp_path):
    undisturbed = train(compose(*BEST_FIRST, folder="undisturbed"), strict=True)[0]
    best = json.loads((undisturbed / "metrics.json").read_text())["best_epoch"]
    assert best < 3, "the case needs an epoch after the best one"

    killed(compose(*BEST_FIRST, folder="before"), "KillAfterBatch", epoch=2, batch=1)
    (tmp_path / "before").rename(tmp_path / "after")
    assert_equal_runs(undisturbed, train(compose(*BEST_FIRST, folder="after"), strict=True)[0])


def test_what_a_kill_leaves_of_the_removal_goes_with_the_next_start(compose, monkeypatch):
    config = compose("recipe.epochs=1", "trainer.limit_batches=1")
    (folder,) = train(config, strict=True)
    identity = json.loads((folder / "identity.json").read_text())
    at, interrupted = 0, True
    while interrupted:
        work = WorkFolder(config.output_dir / ".work" / "seed=0", identity, strict=True)
        work.open(overwrite=False)
        for name in ("fitted", "last.ckpt", "best.ckpt", "mlflow_run_id"):
            (work.path / name).touch()
        interrupted = removal_interrupted(work, at, monkeypatch)
        assert train(config, strict=True) == [folder]
        assert [path.name for path in config.output_dir.iterdir()] == ["seed=0"], f"interrupted before deletion {at}"
        at += 1
    assert at > 7  # five files, the folder, the lock, the folder above


def removal_interrupted(work: WorkFolder, at: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Kill the removal of a work folder before the deletion number `at`; says whether it came to that."""
    left = at

    def counted(delete: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **named: Any) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            delete(*arguments, **named)

        return call

    lock = work._lock
    with monkeypatch.context() as patched:
        for name in ("unlink", "rmdir"):
            patched.setattr(Path, name, counted(getattr(Path, name)))
        try:
            work.remove()
        except Killed:
            return True
        finally:
            assert lock is not None
            lock.release()  # as the end of the process does
    return False


def test_weights_of_another_epoch_are_not_tested(compose, tmp_path):
    killed(compose(*BEST_FIRST), "KillAfterBatch", epoch=2, batch=1)
    work = tmp_path / "run" / ".work" / "seed=0"
    checkpoint = torch.load(work / "best.ckpt", weights_only=True)
    torch.save({**checkpoint, "epoch": checkpoint["epoch"] + 7}, work / "best.ckpt")
    with pytest.raises(UserError, match=r"best\.ckpt is of epoch"):
        train(compose(*BEST_FIRST), strict=True)


@pytest.mark.parametrize("patience", [1, 8], ids=["patience", "a score that is no number"])
def test_a_run_killed_after_early_stopping_does_not_train_on(compose, monkeypatch, patience):
    stopping = (BEST_FIRST[0], "recipe.epochs=9", f"recipe.early_stopping_patience={patience}")
    if patience > 1:
        summarise = ClassificationTask.summarise

        def no_number_in_the_second(self, metrics):
            found = summarise(self, metrics)
            is_second = self.current_epoch == 1 and self.trainer.validating
            return found | {"calibration_error": math.nan} if is_second else found

        monkeypatch.setattr(ClassificationTask, "summarise", no_number_in_the_second)
    undisturbed = train(compose(*stopping, folder="undisturbed"), strict=True)[0]
    epochs = json.loads((undisturbed / "metrics.json").read_text())["epochs"]
    assert epochs < 9, "the case needs an early stop"

    killed(compose(*stopping), "KillAfterStop")
    assert_equal_runs(undisturbed, train(compose(*stopping), strict=True)[0])


def test_seconds_of_a_run_resumed_within_an_epoch_are_those_it_trained(compose, tmp_path):
    options = ("trainer.checkpoint_every_n_steps=2",)
    killed(compose(*options), "KillAfterBatch", epoch=1, batch=4)
    last = tmp_path / "run" / ".work" / "seed=0" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["callbacks"]["Recorder"]["seconds"] += 1000  # as if the epoch's first steps had taken as long
    torch.save(checkpoint, last)
    folder = train(compose(*options), strict=True)[0]
    seconds = json.loads((folder / "timing.json").read_text())["epoch_seconds"]
    assert len(seconds) == 2
    assert 1000 < seconds[1] < 1060  # neither those of the second start alone nor those since the machine was started


def schedule(name: str, **options: str) -> tuple[str, str]:
    """Return the overrides of a schedule of torch's."""
    words = ", ".join(f"{key}: {value}" for key, value in options.items())
    return "~recipe.schedule", f"+recipe.schedule={{_target_: torch.optim.lr_scheduler.{name}, {words}}}"


PLATEAU = schedule("ReduceLROnPlateau", patience="0", factor="0.1", threshold="10.0")
IN_THE_THIRD = ("KillAfterBatch", {"epoch": 2, "batch": 1})
RESUMED = {
    # The options of a run, the callback that kills it, and where.
    "a schedule that follows a metric": (PLATEAU, *IN_THE_THIRD),
    "a schedule of epochs": (schedule("StepLR", step_size="1", gamma="0.3", interval="epoch"), *IN_THE_THIRD),
    "averaged weights in a validation": (("recipe.ema_decay=0.9", BEST_FIRST[0]), "KillInValidation", {"epoch": 2}),
    "averaged weights, the last epoch": (("recipe.ema_decay=0.9", "recipe.protocol=last_epoch"), *IN_THE_THIRD),
    "parameters of several rates": (
        ("recipe.bias_rate=2", "recipe.decay_norms_and_biases=false", "trainer.checkpoint_every_n_steps=2"),
        *("KillAfterBatch", {"epoch": 1, "batch": 5}),
    ),
    "gradient norms of pieces": (
        ("recipe.gradient_norms=true", "trainer.accumulate_grad_batches=2", "trainer.checkpoint_every_n_steps=2"),
        *("KillAfterBatch", {"epoch": 1, "batch": 7}),
    ),
}
FAST = ("a schedule that follows a metric", "averaged weights in a validation")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in FAST else pytest.mark.slow) for kind in RESUMED]
)
def test_a_resumed_run_equals_the_undisturbed_one(compose, kind):
    options, target, at = RESUMED[kind]
    undisturbed = train(compose("recipe.epochs=3", *options, folder="undisturbed"), strict=True)[0]
    killed(compose("recipe.epochs=3", *options), target, **at)
    assert_equal_runs(undisturbed, train(compose("recipe.epochs=3", *options), strict=True)[0])


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_damaged_checkpoint_of_an_unfinished_run_is_told_with_what_helps(compose, tmp_path, name):
    work = tmp_path / "run" / ".work" / "seed=0"
    killed(compose(), "KillAfterBatch", epoch=1, batch=1)
    if name == "best.ckpt":
        (work / "fitted").touch()  # otherwise the second epoch makes another
    (work / name).write_bytes((work / name).read_bytes()[:-500])
    with pytest.raises(UserError, match=rf"{name} is damaged .*; delete .*run/\.work/seed=0 and start again\.$"):
        train(compose(), strict=True)


@pytest.mark.parametrize(
    ("monitor", "lowest"), [("val/loss", True), ("val/calibration_error", True), ("val/f1_macro", False)]
)
def test_the_best_epoch_is_that_of_the_best_value_of_the_monitored_metric(compose, monitor, lowest):
    folder = train(compose(f"recipe.monitor={monitor}", "recipe.epochs=3"), strict=True)[0]
    with (folder / "history.csv").open() as file:
        values = [float(row[monitor]) for row in csv.DictReader(file)]
    best = json.loads((folder / "metrics.json").read_text())["best_epoch"]
    assert values[best - 1] == (min if lowest else max)(values)
    assert torch.load(folder / "best.ckpt", weights_only=True)["epoch"] + 1 == best


@pytest.mark.parametrize("options", [(), ("recipe.bias_rate=3", "recipe.no_decay=['*weight']")], ids=["", "biases"])
def test_the_history_has_the_rate_that_the_last_step_of_an_epoch_was_made_with(compose, options):
    """One epoch of n steps along a cosine without warm-up: the last step has the factor of step n - 1."""
    config = compose("recipe.epochs=1", "recipe.schedule.warmup_epochs=0", "recipe.optimizer.lr=0.1", *options)
    folder = train(config, strict=True)[0]
    with (folder / "history.csv").open() as file:
        row = next(csv.DictReader(file))
    steps = int(row["step"])
    expected = 0.1 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (steps - 1) / steps, dtype=torch.float64)))
    assert float(row["lr"]) == pytest.approx(float(expected))


def test_gradient_norms_of_an_accumulated_batch_are_those_of_the_whole_batch(compose):
    """A net without batch normalisation: two micro-batches give the gradient that the whole batch gives."""
    found = []
    for pieces in (1, 2):
        config = compose(
            "model=lenet5_modern",
            "recipe.epochs=1",
            "recipe.gradient_norms=true",
            "trainer.limit_batches=2",
            f"trainer.accumulate_grad_batches={pieces}",
            folder=f"pieces_{pieces}",
        )
        with (train(config, strict=True)[0] / "history.csv").open() as file:
            row = next(csv.DictReader(file))
        found.append({name: float(value) for name, value in row.items() if name.startswith("gradient/")})
    assert len(found[0]) >= 4
    assert found[1] == pytest.approx(found[0], rel=1e-3)
