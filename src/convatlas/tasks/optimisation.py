"""From a recipe to an optimiser and a learning-rate schedule of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from convatlas.core.config import SGD, Recipe, RMSProp, Schedule


def build_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimiser of `recipe.optimizer` over the trainable parameters of a net."""
    config = recipe.optimizer
    groups = parameter_groups(net, config.weight_decay, recipe.decay_norms_and_biases)
    if isinstance(config, SGD):
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    if isinstance(config, RMSProp):
        return torch.optim.RMSprop(groups, lr=config.lr, alpha=config.alpha, eps=config.eps, momentum=config.momentum)
    optimizer = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return optimizer(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def parameter_groups(net: nn.Module, weight_decay: float, decay_norms_and_biases: bool) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay and those that do not.

    Vectors and scalars are the gains and shifts of normalisations and the biases of layers; kernels and matrices have
    two dimensions or more.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    if decay_norms_and_biases:
        return [{"params": parameters, "weight_decay": weight_decay}]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_schedule(optimizer: torch.optim.Optimizer, schedule: Schedule, epochs: int, steps_per_epoch: int) -> LambdaLR:
    """Build the schedule, stepped once a batch over `epochs * steps_per_epoch` steps."""
    return LambdaLR(optimizer, learning_rate_factor(schedule, epochs, steps_per_epoch))


def learning_rate_factor(schedule: Schedule, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the factor on the recipe's learning rate as a function of the step, from 0."""
    total = epochs * steps_per_epoch
    warmup = min(round(schedule.warmup_epochs * steps_per_epoch), total)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, total - warmup)
        if schedule.name == "multi_step":
            return schedule.gamma ** sum(step >= round(m * total) for m in schedule.milestones)
        if schedule.name == "cosine":
            remaining = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        elif schedule.name == "polynomial":
            remaining = (1 - min(1.0, progress)) ** schedule.power
        else:
            remaining = 1.0
        return schedule.final_fraction + (1 - schedule.final_fraction) * remaining

    return factor
