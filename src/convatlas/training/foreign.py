"""A LightningModule of another package as a run's task: the same trainer, tracking and folder, with less in its record.

The module brings net, loss, metrics and optimiser. What it does not have of a `Task` is left out: predictions and
figures, and with them paired verdicts; costs but for the number of parameters; going on within an epoch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers.logger import DummyLogger

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError, near_matches
from convatlas.core.metrics import Direction
from convatlas.core.processes import rank
from convatlas.core.targets import build, locate, named, user_errors
from convatlas.data.lightning_module import ModuleData, seed_all
from convatlas.data.prepared import PreparedData
from convatlas.models.weights import read_checkpoint
from convatlas.tasks.base import Task
from convatlas.tracking.tracker import SeedTracker
from convatlas.training.accumulation import InPieces
from convatlas.training.machine import check_supported
from convatlas.training.recorder import Recorder
from convatlas.training.results import Results, build_record, check_converged, check_loss, write_results
from convatlas.training.trainer import fit_to_end, has_bar, trainer_of, user_callbacks, user_loggers
from convatlas.training.work_folder import WorkFolder

__all__ = ["check_data_module", "dry_run", "fit_and_test", "is_foreign"]

METHODS = ("training_step", "validation_step", "test_step", "configure_optimizers")


def is_foreign(config: RunConfig) -> bool:
    """Say whether a run's task is a LightningModule that is no `Task`."""
    found = locate(config.task["_target_"], "task._target_")
    return isinstance(found, type) and issubclass(found, pl.LightningModule) and not issubclass(found, Task)


def monitored(config: RunConfig) -> tuple[str, Direction]:
    """Return the metric that marks the best epoch, by default `val_loss`, and its direction, by its name."""
    if config.recipe.protocol == "last_epoch":
        return "step", "max"
    monitor = config.recipe.monitor or "val_loss"
    return monitor, "min" if "loss" in monitor or "error" in monitor else "max"


def dry_run(config: RunConfig, prepared: PreparedData) -> None:
    """Build everything once and validate one batch, before anything is written.

    Raises:
        UserError: something does not fit, or is an option that only a `Task` has.
    """
    recipe, name = config.recipe, config.task["_target_"]
    _check_options(
        config,
        f"task={name}",
        {
            "metrics": bool(config.metrics),
            "weights": config.weights is not None,
            "recipe.trainable": recipe.trainable != "all",
            "recipe.test_views": bool(recipe.test_views),
            "recipe.activation_maps": recipe.activation_maps,
            "recipe.augmentation.mixup": recipe.augmentation.mixup > 0,
            "recipe.augmentation.cutmix": recipe.augmentation.cutmix > 0,
            "trainer.compile": config.trainer.compile is not None,
        },
    )
    module = new_module(config, config.seeds[0])
    for method in METHODS:
        if getattr(type(module), method) is getattr(pl.LightningModule, method):
            raise UserError(f"task._target_={name} has no {method}; add it.")
    check_supported(config, module)
    user_callbacks(config)
    user_loggers(config, config.seeds[0])
    data = new_data(config, prepared, config.seeds[0])
    if isinstance(data, ModuleData):
        data.dry_run()
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    logger = DummyLogger() if config.loggers else False
    trial = pl.Trainer(accelerator="cpu", devices=1, logger=logger, limit_val_batches=1, **quiet)
    with user_errors():
        trial.validate(module, datamodule=data, verbose=False)
    monitor, mode = monitored(config)
    if monitor not in {"step", *trial.callback_metrics}:
        hint = near_matches(monitor, trial.callback_metrics) or "It logs nothing in validation_step."
        raise UserError(f"recipe.monitor={monitor}: {name} does not log it in validation. {hint}")
    if rank() == 0:
        better = "lowest" if mode == "min" else "highest"
        print(
            f"{name} is no Task of convatlas: the best epoch has the {better} {monitor}; optimiser, schedule and loss "
            "are its own; no predictions, figures, paired verdicts, multiply-adds; resumed from whole epochs alone."
        )


def check_data_module(config: RunConfig, prepared: PreparedData) -> None:
    """Make the first batch of `data.module` for a task of this project.

    Raises:
        UserError: the batch does not fit, or the run has an option that needs prepared data.
    """
    name = (config.data.module or {})["_target_"]
    _check_options(config, f"data.module={name}", {"trainer.resident": config.trainer.resident is True})
    batch = ModuleData(prepared, config.data, config.seeds[0], config.trainer.limit_batches).dry_run()
    found = tuple(batch["images"].shape[1:])
    if found != prepared.card.image_shape:
        raise UserError(f"data.module gives images of {found}; set data.in_channels and data.image_size to that.")
    if rank() == 0:
        print(
            f"{name} makes the batches: recipe.batch_size and recipe.augmentation do nothing, and a killed training "
            "goes on from its last whole epoch."
        )


def _check_options(config: RunConfig, chosen: str, more: Mapping[str, bool]) -> None:
    for key, asked in {
        **more,
        "trainer.checkpoint_every_n_steps": config.trainer.checkpoint_every_n_steps is not None,
        "trainer.devices": config.trainer.processes > 1,
        "recipe.protocol": config.recipe.protocol == "last_epoch" and config.data.module is not None,
        "tracking.register_as": config.tracking.register_as is not None,
    }.items():
        if asked:
            raise UserError(f"{key} does not go with {chosen}, which is of another package; leave {key} out.")


def fit_and_test(
    config: RunConfig, prepared: PreparedData, seed: int, *, work: WorkFolder, tracker: SeedTracker, folder: Path
) -> None:
    """Train one seed, test the best epoch's weights, and write its folder.

    Raises:
        UserError: the module, its data, a callback or a logger raises, or the training diverged.
    """
    module, data = new_module(config, seed), new_data(config, prepared, seed)
    monitor, mode = monitored(config)
    printed = {monitor, "train_loss", "train/loss"}
    label, show = f"{config.variant} seed {seed}", not has_bar(config)
    recorder = Recorder(label, config.recipe.epochs, tracker.log_epoch, show=show, logged=("",), printed=printed)
    trainer = trainer_of(config, module, seed, work, recorder, monitor=monitor, mode=mode, own=[SeededSteps(seed)])
    fit_to_end(trainer, module, data, work, recorder)
    check_converged(recorder.rows, monitor, mode)
    module.load_state_dict(read_checkpoint(work.best)["state_dict"])
    started = time.perf_counter()
    with user_errors(), recorder.measured("test"):
        trainer.test(module, datamodule=data, verbose=False)
    test = {k.removeprefix("test/").removeprefix("test_"): float(v) for k, v in trainer.callback_metrics.items()}
    check_loss(test.get("loss"), "test loss became {}")
    record = build_record(
        config,
        seed,
        work=work,
        recorder=recorder,
        model=type(module).__name__,
        fingerprint=prepared.card.fingerprint,
        monitor=monitor,
        mode=mode,
        test=test,
        costs={"parameters": sum(p.numel() for p in module.parameters())},
        test_seconds=time.perf_counter() - started,
    )
    write_results(Results(record, None, {}), config, prepared.card, work, folder)


def new_module(config: RunConfig, seed: int) -> pl.LightningModule:
    """Build the module from its seed."""
    seed_all(seed)
    module: pl.LightningModule = named(build(config.task, "task"), "task")
    return module


def new_data(config: RunConfig, prepared: PreparedData, seed: int) -> pl.LightningDataModule:
    """Build the data: the user's own module as it is, or prepared data as `(images, labels)`."""
    machine = config.trainer
    if config.data.module is not None:
        return ModuleData(prepared, config.data, seed, machine.limit_batches, as_made=True)
    return Pairs(
        prepared,
        config.data,
        config.recipe,
        workers=machine.workers,
        limit_batches=machine.limit_batches,
        seed=seed,
        resident=machine.resident,
        pieces=machine.accumulate_grad_batches,
    )


class Pairs(InPieces):
    """Prepared data whose batches are `(images, labels)`, in segmentation `(images, masks)`; detection's stay."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Take images and labels out of a batch."""
        target = next((name for name in ("labels", "masks") if name in batch), None)
        return batch if target is None else (batch["images"], batch[target])


class SeededSteps(pl.Callback):
    """Seeds every training step, and keeps from checkpoints what only pickle could read back."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, idx: int) -> None:
        """Seed by epoch and batch, so that a resumed training draws what the undisturbed one would have."""
        seed_all(self.seed, trainer.current_epoch, idx)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave out the arguments of the module, which the run's configuration has."""
        for name in ("hyper_parameters", "hparams_name", "hparams_type", "datamodule_hyper_parameters"):
            checkpoint.pop(name, None)
