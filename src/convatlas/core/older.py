"""Configurations that earlier versions wrote, as this one has them: runs that were trained before stay readable."""

from __future__ import annotations

from typing import Any

__all__ = ["upgraded"]

OPTIMIZERS = {"sgd": "SGD", "rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW"}
SCHEDULE_ARGUMENTS = {
    "constant": {"warmup_epochs"},
    "cosine": {"warmup_epochs", "final_fraction"},
    "multi_step": {"warmup_epochs", "milestones", "gamma"},
    "polynomial": {"warmup_epochs", "power", "final_fraction"},
}


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a run's configuration with what earlier versions named otherwise put right."""
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
