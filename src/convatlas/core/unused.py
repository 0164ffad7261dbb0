"""Options of the command line that a run could not use: refused when it is composed, before anything starts.

What a finished run's `config.yaml` holds is read without them, since it was trained so.
"""

from __future__ import annotations

from collections.abc import Iterator

from convatlas.core.config import RunConfig, TrainerConfig
from convatlas.core.errors import UserError

__all__ = ["check_trainer_used", "check_used"]


def check_used(config: RunConfig) -> None:
    """Refuse an option that would do nothing in this run.

    Raises:
        UserError: there is one; the sentence says why.
    """
    check_trainer_used(config.trainer)
    for reason in (*_of_the_recipe(config), *_of_the_model(config)):
        raise UserError(reason)


def check_trainer_used(machine: TrainerConfig) -> None:
    """Refuse an option of the machine that would do nothing.

    Raises:
        UserError: there is one.
    """
    if machine.sync_batchnorm and machine.strategy == "single":
        raise UserError(
            "trainer.sync_batchnorm=true does nothing in one process, whose batch normalisation sees the whole batch; "
            "set it to false, or take trainer=ddp."
        )
    if machine.seeds_at_once not in ("auto", 1) and machine.processes > 1:
        raise UserError(
            f"trainer.seeds_at_once={machine.seeds_at_once} does nothing where a seed takes {machine.processes} "
            "processes: seeds train one after the other; set it to auto."
        )


def _of_the_recipe(config: RunConfig) -> Iterator[str]:
    views = config.recipe.test_views
    if len(set(views)) < len(views):
        yield f"recipe.test_views={list(views)} names a view twice; name each once."


def _of_the_model(config: RunConfig) -> Iterator[str]:
    """Yield why the net cannot be a model of MLflow although that is asked for."""
    options = config.tracking
    asked = {"register_as": options.register_as is not None, "log_model": options.log_model == "each_seed"}
    if config.data.module is not None:
        why = "what data.module does to images is not known"
    elif not config.task["_target_"].startswith("convatlas."):
        why = f"what {config.task['_target_']} does with a net's answer is not known"
    else:
        return
    for key, is_asked in asked.items():
        if is_asked:
            yield (
                f"tracking.{key}={getattr(options, key)}: {why}, so no model is logged; "
                f"set tracking.{key}={'null' if key == 'register_as' else 'true'}."
            )
