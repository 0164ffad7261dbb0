"""From a recipe to its optimiser and its learning-rate schedule, and the schedules of the papers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase as fnmatch
from typing import Any, TypedDict, Unpack

from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from convatlas.core.config import Recipe
from convatlas.core.errors import UserError
from convatlas.core.metrics import Direction
from convatlas.core.targets import factory, locate

__all__ = [
    "build_optimizer",
    "build_schedule",
    "constant",
    "cosine",
    "exponential",
    "multi_step",
    "parameter_groups",
    "polynomial",
]


def build_optimizer(net: nn.Module, recipe: Recipe, *, mixed_precision: bool = False) -> Optimizer:
    """Build the optimiser of `recipe.optimizer` over the trainable parameters of a net.

    On the CPU torch's Adam and AdamW take one kernel for all parameters, unless the section says otherwise: of a step
    of a small net with many layers the optimiser else takes a tenth. In mixed precision Lightning clips no gradients
    for such an optimiser, which could unscale them itself. SGD's kernel cannot have parameters whose first gradient
    comes later than that of others, as those of blocks that were left out.

    Raises:
        UserError: its class does not exist or refuses its arguments.
    """
    section = dict(recipe.optimizer)
    on_cpu = all(parameter.device.type == "cpu" for parameter in net.parameters())
    has_kernel = locate(section["_target_"], "recipe.optimizer._target_") in (Adam, AdamW)
    if on_cpu and not mixed_precision and has_kernel and not {"foreach", "differentiable"} & set(section):
        section = {"fused": True, **section}
    optimizer: Optimizer = factory(section, "recipe.optimizer")(parameter_groups(net, recipe))
    return optimizer


def parameter_groups(net: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Split the trainable parameters by whether they decay and by their rate.

    Vectors and scalars are the gains and shifts of normalisations and the biases of layers; kernels and matrices have
    two dimensions or more. Without a `weight_decay` in `recipe.optimizer` the optimiser's own holds. The first group
    has the recipe's rate, unless all parameters have another.

    Raises:
        UserError: a pattern of `recipe.no_decay` fits no parameter.
    """
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    for pattern in recipe.no_decay:
        if not any(fnmatch(name, pattern) for name, _ in named):
            raise UserError(f"recipe.no_decay: no parameter is called {pattern}; they are {named[0][0]}, ...")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        decays = recipe.decay_norms_and_biases or parameter.ndim >= 2
        decays = decays and not any(fnmatch(name, pattern) for pattern in recipe.no_decay)
        faster = recipe.bias_rate != 1 and name.endswith("bias")
        groups.setdefault((not decays, faster), []).append(parameter)
    section = recipe.optimizer
    if recipe.bias_rate != 1 and "lr" not in section:
        raise UserError("recipe.bias_rate multiplies recipe.optimizer.lr, which is not there; give it a value.")
    decay = {"weight_decay": section["weight_decay"]} if section.get("weight_decay") is not None else {}
    return [
        {
            "params": groups[key],
            **({"weight_decay": 0.0} if key[0] else decay),
            **({"lr": section["lr"] * recipe.bias_rate} if key[1] else {}),
        }
        for key in sorted(groups, key=lambda key: (key[1], key[0]))
    ]


def build_schedule(
    section: Mapping[str, Any],
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    *,
    monitor: str,
    mode: Direction,
) -> dict[str, Any]:
    """Build a schedule of ours, of torch or of timm, as Lightning takes it.

    `interval` says whether it advances with each step or each epoch. The arguments `epochs`, `steps_per_epoch` and
    `total_steps`, and the `mode` of `ReduceLROnPlateau`, are filled in where the section leaves them out.

    Args:
        section: `recipe.schedule`.
        optimizer: whose rate it sets.
        epochs: of the whole training.
        steps_per_epoch: optimiser steps in an epoch.
        monitor: the metric that `ReduceLROnPlateau` follows.
        mode: whether its highest or lowest value is the best.

    Raises:
        UserError: its class does not exist or refuses its arguments, or it follows a metric that there is not, or the
            wrong way.
    """
    given = {key: value for key, value in section.items() if key != "interval"}
    known: dict[str, Any] = {
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        "total_steps": epochs * steps_per_epoch,
    }
    kind = locate(given["_target_"], "recipe.schedule._target_")
    plateau = isinstance(kind, type) and issubclass(kind, ReduceLROnPlateau)
    if getattr(kind, "__name__", "") == "PlateauLRScheduler":
        raise UserError(
            "recipe.schedule: timm's PlateauLRScheduler gets no metric here, and would change nothing; take "
            "torch.optim.lr_scheduler.ReduceLROnPlateau."
        )
    if plateau and monitor == "step":
        raise UserError(
            "recipe.schedule: ReduceLROnPlateau follows the validation, which recipe.protocol=last_epoch has not; "
            "choose another schedule."
        )
    if plateau and given.get("mode", mode) != mode:
        better = "higher" if mode == "max" else "lower"
        raise UserError(f"recipe.schedule.mode={given['mode']}: a {better} {monitor} is better; leave mode out.")
    known |= {"mode": mode} if plateau else {}
    taken = inspect.signature(kind).parameters
    filled = {name: value for name, value in known.items() if name in taken and name not in given}
    schedule = factory(given, "recipe.schedule")(optimizer, **filled)
    interval = section.get("interval", "epoch" if plateau else "step")
    return {"scheduler": schedule, "interval": interval, "reduce_on_plateau": plateau, "monitor": monitor}


# ---- the papers' schedules: each takes the warm-up of `_after_warmup` as well ---------------------------------------


class Warmup(TypedDict, total=False):
    """The options of every schedule's warm-up, see `_after_warmup`."""

    warmup_epochs: float
    warmup_steps: int
    warmup_fraction: float
    warmup_start: float
    warmup_power: float


def constant(optimizer: Optimizer, epochs: int, steps_per_epoch: int, **warmup: Unpack[Warmup]) -> LambdaLR:
    """Keep the recipe's rate, after a warm-up."""
    return _after_warmup(optimizer, epochs, steps_per_epoch, lambda _step, _progress: 1.0, **warmup)


def multi_step(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    *,
    milestones: Sequence[float],
    gamma: float | Sequence[float],
    **warmup: Unpack[Warmup],
) -> LambdaLR:
    """Multiply the rate by `gamma` at each milestone, or by the factor of each where `gamma` is a list.

    Milestones are fractions of the training between 0 and 1, or whole numbers of steps, both counted from the first
    step, warm-up included.
    """
    total = epochs * steps_per_epoch
    if not all(0 < m < 1 or (m >= 1 and m == int(m)) for m in milestones):
        raise ValueError(f"milestones={list(milestones)} are fractions of the training, between 0 and 1, or steps")
    factors = list(gamma) if isinstance(gamma, Sequence) else [gamma] * len(milestones)
    if len(factors) != len(milestones):
        raise ValueError(f"gamma={factors} must have a factor for each of milestones={list(milestones)}")
    steps = [int(m) if m >= 1 else round(m * total) for m in milestones]

    def factor(step: int, _progress: float) -> float:
        reached = sum(step >= s for s in steps)
        return math.prod(factors[:reached]) if isinstance(gamma, Sequence) else gamma**reached

    return _after_warmup(optimizer, epochs, steps_per_epoch, factor, **warmup)


def exponential(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    *,
    gamma: float,
    every_epochs: float,
    **warmup: Unpack[Warmup],
) -> LambdaLR:
    """Multiply the rate by `gamma` after every so many epochs, counted from the first step (TensorFlow's staircase)."""
    every = max(1, int(every_epochs * steps_per_epoch))

    def factor(step: int, _progress: float) -> float:
        return gamma ** (step // every)

    return _after_warmup(optimizer, epochs, steps_per_epoch, factor, **warmup)


def cosine(
    optimizer: Optimizer, epochs: int, steps_per_epoch: int, *, final_fraction: float = 0.0, **warmup: Unpack[Warmup]
) -> LambdaLR:
    """Let the rate fall along half a cosine to `final_fraction` of it (Loshchilov and Hutter 2017, no restarts)."""

    def factor(_step: int, progress: float) -> float:
        return final_fraction + (1 - final_fraction) * (0.5 * (1 + math.cos(math.pi * progress)))

    return _after_warmup(optimizer, epochs, steps_per_epoch, factor, **warmup)


def polynomial(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    *,
    power: float,
    final_fraction: float = 0.0,
    **warmup: Unpack[Warmup],
) -> LambdaLR:
    """Let the rate fall to `final_fraction` of it with the remaining fraction of the training to the `power`."""

    def factor(_step: int, progress: float) -> float:
        return final_fraction + (1 - final_fraction) * (1 - progress) ** power

    return _after_warmup(optimizer, epochs, steps_per_epoch, factor, **warmup)


def _after_warmup(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    factor: Callable[[int, float], float],
    *,
    warmup_epochs: float = 0,
    warmup_steps: int = 0,
    warmup_fraction: float = 0,
    warmup_start: float = 0.0,
    warmup_power: float = 1,
) -> LambdaLR:
    """Raise the rate over the warm-up, then multiply it by `factor(step, progress)`, progress from 0 to 1.

    Args:
        optimizer: whose rate it is.
        epochs: of the whole training.
        steps_per_epoch: optimiser steps in an epoch.
        factor: of the rate after the warm-up.
        warmup_epochs: its length in epochs.
        warmup_steps: or in steps.
        warmup_fraction: or as a fraction of the training.
        warmup_start: share of the rate that it starts from.
        warmup_power: the rate rises with the share of the warm-up to this power.
    """
    lengths = {
        "warmup_epochs": warmup_epochs,
        "warmup_steps": warmup_steps,
        "warmup_fraction": warmup_fraction,
    }
    given = ", ".join(f"{name}={length}" for name, length in lengths.items() if length)
    if min(lengths.values()) < 0 or warmup_fraction > 1:
        raise ValueError(f"{given}: a warm-up is not negative, and no longer than the training")
    if sum(map(bool, lengths.values())) > 1:
        raise ValueError(f"{given}: give one of them")
    total = epochs * steps_per_epoch
    asked = warmup_steps or round(warmup_epochs * steps_per_epoch) or round(warmup_fraction * total)
    warmup = min(asked, total)

    def at(step: int) -> float:
        if step < warmup:
            return warmup_start + (1 - warmup_start) * ((step + 1) / warmup) ** warmup_power
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
