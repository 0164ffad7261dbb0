"""From a recipe to its optimiser and its learning-rate schedule, and the schedules of the papers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from convatlas.core.config import Recipe
from convatlas.core.targets import factory, locate

__all__ = ["build_optimizer", "build_schedule", "constant", "cosine", "multi_step", "parameter_groups", "polynomial"]


def build_optimizer(net: nn.Module, recipe: Recipe) -> Optimizer:
    """Build the optimiser of `recipe.optimizer` over the trainable parameters of a net.

    Raises:
        UserError: its class does not exist or refuses its arguments.
    """
    section = dict(recipe.optimizer)
    groups = parameter_groups(net, section.get("weight_decay"), recipe.decay_norms_and_biases)
    optimizer: Optimizer = factory(section, "recipe.optimizer")(groups)
    return optimizer


def parameter_groups(net: nn.Module, weight_decay: float | None, decay_norms_and_biases: bool) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay and those that do not.

    Vectors and scalars are the gains and shifts of normalisations and the biases of layers; kernels and matrices have
    two dimensions or more. A `weight_decay` of None leaves the optimiser's own.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    if decay_norms_and_biases:
        return [{"params": parameters, **decay}]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], **decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_schedule(
    section: Mapping[str, Any], optimizer: Optimizer, epochs: int, steps_per_epoch: int, monitor: str
) -> dict[str, Any]:
    """Build a schedule of ours, of torch or of timm, as Lightning takes it.

    `interval` says whether it advances with each step or each epoch. The arguments `epochs`, `steps_per_epoch` and
    `total_steps` are filled in where the schedule takes them and the section leaves them out.

    Args:
        section: `recipe.schedule`.
        optimizer: whose rate it sets.
        epochs: of the whole training.
        steps_per_epoch: optimiser steps in an epoch.
        monitor: the metric that `ReduceLROnPlateau` follows.

    Raises:
        UserError: its class does not exist or refuses its arguments.
    """
    given = {key: value for key, value in section.items() if key != "interval"}
    known = {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "total_steps": epochs * steps_per_epoch}
    taken = inspect.signature(locate(given["_target_"], "recipe.schedule._target_")).parameters
    filled = {name: value for name, value in known.items() if name in taken and name not in given}
    schedule = factory(given, "recipe.schedule")(optimizer, **filled)
    plateau = isinstance(schedule, ReduceLROnPlateau)
    interval = section.get("interval", "epoch" if plateau else "step")
    return {"scheduler": schedule, "interval": interval, "reduce_on_plateau": plateau, "monitor": monitor}


# ---- the papers' schedules ------------------------------------------------------------------------------------------


def constant(optimizer: Optimizer, epochs: int, steps_per_epoch: int, warmup_epochs: float = 0) -> LambdaLR:
    """Keep the recipe's rate, after a linear warm-up."""
    return _after_warmup(optimizer, epochs, steps_per_epoch, warmup_epochs, lambda _step, _progress: 1.0)


def multi_step(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    *,
    milestones: Sequence[float],
    gamma: float,
    warmup_epochs: float = 0,
) -> LambdaLR:
    """Multiply the rate by `gamma` at each milestone, a fraction of the training between 0 and 1."""
    if not all(0 < milestone < 1 for milestone in milestones):
        raise ValueError(f"milestones={list(milestones)} are fractions of the training, each between 0 and 1")
    total = epochs * steps_per_epoch
    steps = [round(milestone * total) for milestone in milestones]
    return _after_warmup(
        optimizer,
        epochs,
        steps_per_epoch,
        warmup_epochs,
        lambda step, _progress: gamma ** sum(step >= s for s in steps),
    )


def cosine(
    optimizer: Optimizer, epochs: int, steps_per_epoch: int, *, warmup_epochs: float = 0, final_fraction: float = 0.0
) -> LambdaLR:
    """Let the rate fall along half a cosine to `final_fraction` of it (Loshchilov and Hutter 2017, no restarts)."""

    def factor(_step: int, progress: float) -> float:
        return final_fraction + (1 - final_fraction) * (0.5 * (1 + math.cos(math.pi * progress)))

    return _after_warmup(optimizer, epochs, steps_per_epoch, warmup_epochs, factor)


def polynomial(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    *,
    power: float,
    warmup_epochs: float = 0,
    final_fraction: float = 0.0,
) -> LambdaLR:
    """Let the rate fall to `final_fraction` of it with the remaining fraction of the training to the `power`."""

    def factor(_step: int, progress: float) -> float:
        return final_fraction + (1 - final_fraction) * (1 - progress) ** power

    return _after_warmup(optimizer, epochs, steps_per_epoch, warmup_epochs, factor)


def _after_warmup(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    factor: Callable[[int, float], float],
) -> LambdaLR:
    """Raise the rate linearly over the warm-up, then multiply it by `factor(step, progress)`, progress from 0 to 1."""
    if warmup_epochs < 0:
        raise ValueError(f"warmup_epochs={warmup_epochs} must not be negative")
    total = epochs * steps_per_epoch
    warmup = min(round(warmup_epochs * steps_per_epoch), total)

    def at(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return factor(step, min(1.0, (step - warmup) / max(1, total - warmup)))

    return LambdaLR(optimizer, at)


def step_schedule(scheduler: Any, epoch: int, step: int, metric: Any | None, *, each_step: bool) -> None:
    """Advance a schedule of torch, or one of timm's, which count by themselves.

    Args:
        scheduler: the schedule.
        epoch: epochs that are done.
        step: optimiser steps that are done.
        metric: the monitored value, for `ReduceLROnPlateau`.
        each_step: it advances with each step instead of each epoch.
    """
    if hasattr(scheduler, "step_update"):  # timm's
        scheduler.step_update(step) if each_step else scheduler.step(epoch, metric)
    elif metric is not None:
        scheduler.step(metric)
    else:
        scheduler.step()
