"""A run tried before anything is written: net, task, metrics, optimiser, schedule, callbacks and loggers."""

from __future__ import annotations

import sys

import torch
from torch import nn

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.core.processes import rank
from convatlas.data.augmentation import check_used
from convatlas.data.module import DataModule
from convatlas.data.prepared import PreparedData
from convatlas.tasks import new_task
from convatlas.tasks.activation_maps import class_activation_maps
from convatlas.tasks.base import Task
from convatlas.tasks.optimisation import build_optimizer, build_schedule
from convatlas.tasks.views import with_views
from convatlas.tracking.tracker import check_registration
from convatlas.training.foreign import check_data_module
from convatlas.training.machine import check_supported, with_scaled_rate
from convatlas.training.trainer import user_callbacks, user_loggers
from convatlas.training.transfer import check_weights

__all__ = ["dry_run"]


def dry_run(net: nn.Module, config: RunConfig, prepared: PreparedData) -> None:
    """Build everything that the run names once, and evaluate one black image.

    Args:
        net: a net of the run, which is not used any more afterwards.
        config: the run.
        prepared: its data.

    Raises:
        UserError: something does not exist, does not fit, or is an option that this run would not use.
    """
    if config.data.module is None:
        _check_data(config, prepared)
    else:
        check_data_module(config, prepared)
    check_supported(config, net)
    task = new_task(net, config, list(prepared.card.classes), config.seeds[0])
    task.dry_run()
    _check_normalisation(task, config)
    for size in config.recipe.augmentation.image_sizes:
        if size != config.data.image_size:
            _check_training_size(task, config, size)
    for view in config.recipe.test_views:
        with_views(net, view, config, f"recipe.test_views={view}")
    if config.recipe.activation_maps:
        size = config.data.image_size
        class_activation_maps(net, torch.zeros(1, config.data.in_channels, size, size))
    optimizer = build_optimizer(net, with_scaled_rate(config).recipe)
    rates = [group["lr"] for group in optimizer.param_groups]
    epochs = config.recipe.epochs
    build_schedule(config.recipe.schedule, optimizer, epochs, 1, monitor=task.monitor, mode=task.monitor_mode)
    if any(group.get("initial_lr", rate) != rate for group, rate in zip(optimizer.param_groups, rates, strict=True)):
        _check_rate_is_left_alone(config)
    if config.tracking.enabled:
        check_registration(config.tracking)
    user_callbacks(config)
    user_loggers(config, config.seeds[0])
    check_weights(config)


def _check_rate_is_left_alone(config: RunConfig) -> None:
    """Refuse what changes a rate that the schedule, such as torch's OneCycleLR, then replaces by one of its own.

    Raises:
        UserError: something does.
    """
    usual = {
        "recipe.bias_rate": (config.recipe.bias_rate, 1),
        "trainer.scale_lr_from": (config.trainer.scale_lr_from, None),
    }
    for key, (value, without) in usual.items():
        if value != without:
            raise UserError(
                f"{key}={value} does nothing: {config.recipe.schedule['_target_']} sets the rates itself; set {key} to "
                f"{'null' if without is None else without}."
            )


def _check_data(config: RunConfig, prepared: PreparedData) -> None:
    """Check the augmentation, and say where the training images are fewer than a batch."""
    check_used(config.recipe.augmentation, config.data.task)
    data = DataModule(prepared, config.data, config.recipe, workers=0, limit_batches=None, seed=0)
    images, batch_size = len(data.training_split), config.recipe.batch_size
    if images < batch_size and rank() == 0:
        sentence = f"recipe.batch_size={batch_size} is more than the {images:,} images of training"
        print(f"{sentence}; each step takes all of them.", file=sys.stderr)


def _check_normalisation(task: Task, config: RunConfig) -> None:
    """Check that a batch of one image leaves batch normalisation more than one value of each channel.

    Raises:
        UserError: the net ends in maps of one pixel.
    """
    machine, recipe, size = config.trainer, config.recipe, config.data.image_size
    if recipe.trainable != "all" or recipe.batch_size > machine.processes * machine.accumulate_grad_batches:
        return
    try:
        with torch.no_grad():
            task.net.train()(torch.zeros(1, config.data.in_channels, size, size))
    except Exception as error:
        if "more than 1 value per channel" in str(error):  # anything else is what a training gives a net beside images
            raise UserError(
                f"Batch normalisation has nothing to average: of {size} pixels the net leaves one, and a step sees one "
                "image at a time. Raise recipe.batch_size, or lower trainer.accumulate_grad_batches."
            ) from error
    finally:
        task.net.eval()


def _check_training_size(task: Task, config: RunConfig, size: int) -> None:
    """Try images of a size other than the data's, as the training would show them.

    Raises:
        UserError: the net does not take it.
    """
    try:
        task.try_size(config.data.in_channels, size)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"recipe.augmentation.image_sizes: this net takes no images of {size} pixels ({error}); leave {size} out."
        ) from error
