"""Tasks: a LightningModule each for classification, detection and segmentation, that owns all of its task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convatlas.core.targets import factory, locate

if TYPE_CHECKING:
    from torch import nn

    from convatlas.core.config import RunConfig
    from convatlas.tasks.base import Task

__all__ = ["new_task", "task_class"]


def task_class(config: RunConfig) -> type[Task]:
    """Return the class of the run's task; only that task's file is imported.

    Raises:
        UserError: there is none of that name, or it is no task of this project.
    """
    from convatlas.core.errors import UserError
    from convatlas.tasks.base import Task

    found = locate(config.task["_target_"], "task._target_")
    if not (isinstance(found, type) and issubclass(found, Task)):
        lightning = isinstance(found, type) and any(base.__name__ == "LightningModule" for base in found.__mro__)
        remedy = "load the checkpoint with that class" if lightning else "name a Task or a LightningModule"
        raise UserError(f"task._target_={config.task['_target_']} is no Task of convatlas, as this needs; {remedy}.")
    return found


def new_task(net: nn.Module, config: RunConfig, classes: list[str], seed: int) -> Task:
    """Put the run's task around a net, with the task's own metrics and those of `config.metrics`.

    Raises:
        UserError: the task or a metric cannot be built.
    """
    task_class(config)
    section = {**config.task, "metrics": {**config.task.get("metrics", {}), **config.metrics}}
    task: Task = factory(section, "task")(net, config, classes, seed)
    return task
