"""Configurations that earlier versions wrote, as this one has them: runs that were trained before stay readable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["upgraded"]

OPTIMIZERS = {"sgd": "SGD", "rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW"}
SCHEDULE_ARGUMENTS = {
    "constant": {"warmup_epochs"},
    "cosine": {"warmup_epochs", "final_fraction"},
    "multi_step": {"warmup_epochs", "milestones", "gamma"},
    "polynomial": {"warmup_epochs", "power", "final_fraction"},
}


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a run's configuration with what earlier versions named otherwise put right."""
    return _recipe_of_targets(_about_and_weights_outside(values))


def _about_and_weights_outside(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put `about` and `weights` beside `model`, where older files and a user's own have them inside.

    A net without a title has the name of its class or function.
    """
    model = values.get("model")
    if not isinstance(model, Mapping):
        return dict(values)
    about, inside = values.get("about") or {}, model.get("about") or {}
    if isinstance(about, Mapping) and isinstance(inside, Mapping):
        about = {"title": str(model.get("_target_")).rpartition(".")[2]} | {**about, **inside}
    weights = values.get("weights") if model.get("weights") is None else model["weights"]
    arguments = {key: value for key, value in model.items() if key not in {"about", "weights", "_convert_"}}
    return {**values, "about": about, "model": arguments, "weights": weights}


def _recipe_of_targets(values: dict[str, Any]) -> dict[str, Any]:
    """Name optimiser, schedule and loss by `_target_`."""
    recipe = values.get("recipe")
    if not isinstance(recipe, dict):
        return values
    changed = dict(recipe)
    optimizer, schedule, loss = (recipe.get(key) for key in ("optimizer", "schedule", "loss"))
    if isinstance(optimizer, dict) and optimizer.get("name") in OPTIMIZERS:
        rest = {key: value for key, value in optimizer.items() if key != "name"}
        changed["optimizer"] = {"_target_": f"torch.optim.{OPTIMIZERS[optimizer['name']]}", **rest}
    if isinstance(schedule, dict) and schedule.get("name") in SCHEDULE_ARGUMENTS:
        taken = SCHEDULE_ARGUMENTS[schedule["name"]]
        rest = {key: value for key, value in schedule.items() if key in taken}
        changed["schedule"] = {"_target_": f"convatlas.tasks.optimisation.{schedule['name']}", **rest}
    if isinstance(loss, dict) and "_target_" not in loss:
        changed["loss"] = {"_target_": "convatlas.tasks.losses.CrossEntropy", **loss}
    return {**values, "recipe": changed}
