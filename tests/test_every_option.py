"""Every option of a run is used or refused: the keys of its configuration, one row each.

A new key fails the first test until it has a row: what it changes in a training of two steps, with which words it is
refused, which test shows it, or why it needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import pytest
import torch

from convatlas.core.config import RunConfig, keys_of
from convatlas.data.lightning_module import open_data
from convatlas.models.weights import read_checkpoint
from convatlas.training import run
from convatlas.training.work_folder import WorkFolder
from helpers import ROOT, assert_one_sentence


@dataclass(frozen=True)
class Changes:
    """An option that changes what a short training gives."""

    option: str
    beside: tuple[str, ...] = ()
    """Options of the training with it and of the one without it."""


@dataclass(frozen=True)
class Refused:
    """An option that a training on prepared data cannot use."""

    option: str
    words: str


@dataclass(frozen=True)
class Shown:
    """A test elsewhere that shows what the option does."""

    test: str


@dataclass(frozen=True)
class Because:
    """Why the option needs no test."""

    reason: str


Row = Changes | Refused | Shown | Because

AUGMENTATION: dict[str, Row] = {
    "crop_padding": Changes("3"),
    "crop_padding_mode": Changes("mean", ("recipe.augmentation.crop_padding=4",)),
    "horizontal_flip": Changes("true"),
    "cutout": Changes("8"),
    "rotation_degrees": Changes("20"),
    "scale": Changes("0.2"),
    "brightness": Changes("0.2"),
    "contrast": Changes("0.2"),
    "saturation": Refused("0.2", "3 channels"),
    "hue": Refused("0.1", "3 channels"),
    "colour_noise": Changes("0.1"),
    "random_area": Changes("[0.3,1]"),
    "zoom_out": Changes("2"),
    "least_box_area": Refused("0.5", "does nothing for classification"),
    "rand_augment": Changes("1"),
    "rand_augment_magnitude": Changes("20", ("recipe.augmentation.rand_augment=2",)),
    "mixup": Changes("0.2"),
    "cutmix": Changes("1.0"),
    "image_sizes": Changes("[24]", ("model=resnet_cifar", "model.depth=8")),
}
RECIPE: dict[str, Row] = {
    "epochs": Changes("1"),
    "batch_size": Changes("32"),
    "evaluation_batch_size": Shown("data/test_data_module.py::test_a_limit_shortens_every_loader"),
    "optimizer": Changes("adam"),
    "decay_norms_and_biases": Changes("false"),
    "no_decay": Changes("['*.weight']"),
    "bias_rate": Changes("2"),
    "schedule": Changes("constant"),
    "loss": Changes("label_smoothing=0.1"),
    "trainable": Changes("head"),
    "test_views": Shown("test_transfer.py::test_a_recipe_may_test_the_net_on_several_views"),
    "test_crop": Changes("0.5"),
    "ema_decay": Changes("0.9"),
    "gradient_clip_norm": Changes("0.01"),
    "gradient_norms": Changes("true"),
    "activation_maps": Refused("true", "does not end with the mean"),
    "early_stopping_patience": Changes("1", ("recipe.epochs=4", "recipe.optimizer.lr=1e-9")),
    "monitor": Shown("training/test_interruptions.py::test_the_best_epoch_is_that_of_the_best_value_of_the_monitored"),
    "protocol": Changes("last_epoch"),
}
TRAINER: dict[str, Row] = {
    "accelerator": Shown("training/test_trainers.py::test_a_gpu_that_is_not_there_is_told"),
    "devices": Refused("2", "needs trainer.strategy=ddp"),
    "num_nodes": Refused("2", "needs trainer.strategy=ddp"),
    "strategy": Refused("fsdp", "set trainer.devices to 2 or more"),
    "precision": Changes("64-true"),
    "channels_last": Changes("true"),
    "compile": Shown("training/test_trainers.py::test_a_compiled_net_trains_to_the_same_weights_under_the_same_names"),
    "accumulate_grad_batches": Changes("2", ("model=resnet_cifar", "model.depth=8")),
    "scale_lr_from": Changes("32"),
    "seeds_at_once": Shown("training/test_side_by_side.py::test_as_many_seeds_as_there_are_cores_for_their_threads"),
    "threads": Shown("test_every_option.py::test_threads"),
    "workers": Shown("data/test_resident.py::test_a_module_copies_once_and_starts_no_workers"),
    "resident": Shown("data/test_resident.py::test_where_batches_are_made"),
    "sync_batchnorm": Refused("true", "does nothing in one process"),
    "deterministic": Shown("test_every_option.py::test_deterministic"),
    "progress_bar": Because("a bar is shown on a terminal alone"),
    "checkpoint_every_n_steps": Shown("training/test_determinism.py::test_resuming_in_the_middle_of_an_epoch_gives"),
    "limit_batches": Changes("3"),
}
DATA: dict[str, Row] = {
    "name": Refused("other", "data.name=other"),
    "task": Refused("segmentation", "segmentation"),
    "source": Refused("+x=1", "data.source.x=1"),
    "root": Because("it is read by prepare; what was prepared decides a training, and its fingerprint is compared"),
    "prepared": Refused("nowhere", "has no dataset.json"),
    "image_size": Changes("24", ("model=resnet_cifar", "model.depth=8")),
    "in_channels": Refused("3", "in_channels=3"),
    "num_classes": Refused("9", "num_classes=9"),
    "split.validation": Refused("0.2", "split.validation=0.2"),
    "split.test": Refused("0.3", "split.test=0.3"),
    "split.seed": Refused("1", "split.seed=1"),
    "split.train_per_class": Refused("+5", "split.train_per_class=5"),
    "storage": Refused("+shards", "storage=shards"),
    "stored_side": Refused("+32", "stored_side=32"),
    "module": Shown("test_seam.py::test_a_lightning_data_module_trains_our_task"),
}
TRACKING: dict[str, Row] = {
    "enabled": Shown("tracking/test_completing.py::test_a_store_that_cannot_be_used_stops_train_but_no_pipeline"),
    "uri": Shown("tracking/test_completing.py::test_a_store_that_cannot_be_used_stops_train_but_no_pipeline"),
    "system_metrics": Because("it hands the run to MLflow's own monitor"),
    "log_model": Shown("tracking/test_completing.py::test_models_are_logged_once"),
    "register_as": Shown("tracking/test_completing.py::test_a_registration_that_failed_is_repeated_by_track"),
    "alias": Shown("tracking/test_completing.py::test_a_registration_that_failed_is_repeated_by_track"),
}
RUN: dict[str, Row] = {
    "study": Shown("test_options.py::test_the_study_of_a_run_is_an_option"),
    "variant": Because("it names the folder and the run"),
    "seeds": Shown("training/test_determinism.py::test_another_seed_gives_other_weights"),
    "output_dir": Shown("test_bad_input.py::test_an_output_folder_that_cannot_be_made"),
    "work_dir": Shown("test_nothing_lost.py::test_results_may_not_lie_where_the_training_works"),
    "overwrite": Shown("test_nothing_lost.py::test_earlier_results_are_replaced"),
    "task": Shown("test_seam.py::test_a_lightning_module_trains_on_our_data"),
    "metrics": Shown("test_seam.py::test_a_loss_a_metric_and_a_logger"),
    "callbacks": Shown("test_seam.py::test_every_addition_of_the_guide"),
    "loggers": Shown("test_seam.py::test_a_loss_a_metric_and_a_logger"),
    "model": Changes("lenet5"),
    "weights": Shown("test_transfer.py::test_frozen_features_stay_to_the_bit_and_the_optimiser_holds_the_head_alone"),
    **{f"about.{key}": Because("it says what the net is") for key in ("title", "paper", "year", "origin")},
    "about.task": Refused("detection", "model is for detection"),
    "about.input_size": Because("it says at which size costs are counted"),
    "about.deviations": Because("it says what the net is"),
    **{f"recipe.augmentation.{key}": row for key, row in AUGMENTATION.items()},
    **{f"recipe.{key}": row for key, row in RECIPE.items()},
    **{f"trainer.{key}": row for key, row in TRAINER.items()},
    **{f"data.{key}": row for key, row in DATA.items()},
    **{f"tracking.{key}": row for key, row in TRACKING.items()},
}
GROUPS = {"recipe.optimizer": "recipe/optimizer", "recipe.schedule": "recipe/schedule"}


def override(key: str, option: str) -> str:
    """Return an override of a key; a section takes one of its own."""
    plus = "+" if option.startswith("+") else ""
    option = option.removeprefix("+")
    return f"{plus}{key}.{option}" if "=" in option else f"{plus}{GROUPS.get(key, key)}={option}"


def test_every_key_of_a_run_has_a_row():
    assert sorted(RUN) == sorted(keys_of(RunConfig))


def test_the_tests_that_rows_name_are_there():
    for row in RUN.values():
        if isinstance(row, Shown):
            file, _, name = row.test.partition("::")
            assert f"def {name}" in (ROOT / "tests" / file).read_text(), row.test


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, ...], str]:
    """Return what came out of trainings, by their options."""
    return {}


@pytest.fixture
def trained(known, compose, tmp_path) -> Callable[..., str]:
    """Train for two steps in each of two epochs, once for each choice of options, and return what came out."""

    def trained(*options: str) -> str:
        if options not in known:
            known[options] = train(*options)
        return known[options]

    def train(*options: str) -> str:
        run.quieten_libraries()
        given = {option.partition("=")[0] for option in options}
        small = ("recipe.epochs=2", "recipe.batch_size=64", "trainer.limit_batches=2", "trainer.channels_last=false")
        config = compose(*(option for option in small if option.partition("=")[0] not in given), *options)
        work = WorkFolder(tmp_path / "work", {}, strict=True)
        work.open(overwrite=True)
        fitted = run.fit(config, open_data(config.data), 0, work, lambda _: None)
        epoch = read_checkpoint(work.best)["epoch"]
        weights = b"".join(tensor.numpy().tobytes() for tensor in fitted.task.net.state_dict().values())
        work.remove()
        return f"{epoch} {fitted.recorder.rows} {sha256(weights).hexdigest()}"

    return trained


CHANGING = {key: row for key, row in RUN.items() if isinstance(row, Changes)}


@pytest.mark.parametrize("key", CHANGING)
def test_an_option_changes_the_training(trained, key):
    row = CHANGING[key]
    assert trained(*row.beside, override(key, row.option)) != trained(*row.beside)


REFUSED = {key: row for key, row in RUN.items() if isinstance(row, Refused)}


@pytest.mark.parametrize("key", REFUSED)
def test_an_option_that_this_run_cannot_use_is_refused(enter, prepared_digits, tmp_path, key):
    prepared = [] if key == "data.prepared" else [f"data.prepared={prepared_digits}"]
    options = ("tracking=none", "model=lenet5_modern", f"output_dir={tmp_path / 'run'}")
    entered = enter("train", *options, *prepared, override(key, REFUSED[key].option))
    assert_one_sentence(entered, REFUSED[key].words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(compose, monkeypatch, threads):
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    run.train(compose(f"trainer.threads={threads}", "recipe.epochs=1", "trainer.limit_batches=1"), strict=True)
    assert asked == [threads, threads]


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic(compose, monkeypatch, wanted):
    seen: list[bool] = []
    monkeypatch.setattr(run, "check_best", lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    options = ("recipe.epochs=1", "trainer.limit_batches=1", f"trainer.deterministic={str(wanted).lower()}")
    try:
        run.train(compose(*options), strict=True)
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)
    assert seen == [wanted]
