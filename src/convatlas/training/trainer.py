"""Lightning's trainer for one run: the pipeline's own callbacks, and the callbacks and loggers that a user adds."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from torch import nn

from convatlas.core.config import RunConfig, TrainerConfig
from convatlas.core.digests import flat
from convatlas.core.errors import UserError
from convatlas.core.metrics import Direction
from convatlas.core.targets import build, named, user_errors
from convatlas.data.module import batches_done
from convatlas.models.weights import read_checkpoint
from convatlas.tasks.base import Task
from convatlas.training.checkpoints import CatchesUp, StopsAgain, checkpoint_callbacks
from convatlas.training.net_callbacks import AveragesWeights, FollowsNet, GradientNorms, InvertsImages
from convatlas.training.recorder import Recorder
from convatlas.training.strategies import ChannelsLast, build_plugins, build_strategy, device_of, precision_of
from convatlas.training.work_folder import WorkFolder

__all__ = ["build_tester", "build_trainer", "fit_to_end", "has_bar", "trainer_of", "user_callbacks", "user_loggers"]


def build_trainer(config: RunConfig, task: Task, seed: int, work: WorkFolder, recorder: Recorder) -> pl.Trainer:
    """Build the trainer of a task; see `trainer_of`."""
    own: list[pl.Callback] = [FollowsNet(), InvertsImages()]
    if config.trainer.channels_last:
        own.append(ChannelsLast())
    return trainer_of(config, task.net, seed, work, recorder, monitor=task.monitor, mode=task.monitor_mode, own=own)


def trainer_of(
    config: RunConfig,
    net: nn.Module,
    seed: int,
    work: WorkFolder,
    recorder: Recorder,
    *,
    monitor: str,
    mode: Direction,
    own: Sequence[pl.Callback],
) -> pl.Trainer:
    """Build the trainer of one seed; its last callbacks are those that save.

    Args:
        config: the run.
        net: what is trained.
        seed: of the run.
        work: where checkpoints are saved.
        recorder: of the history.
        monitor: the metric that marks the best epoch.
        mode: whether its highest or lowest value is the best.
        own: callbacks that the task needs.

    Raises:
        UserError: a callback or logger of the user cannot be built.
    """
    machine, recipe = config.trainer, config.recipe
    callbacks: list[pl.Callback] = [
        *own,
        *user_callbacks(config).values(),
        recorder,
        CatchesUp(lambda: recorder.rows),
        *checkpoint_callbacks(work.path, monitor, mode, machine.checkpoint_every_n_steps),
    ]
    if recipe.ema_decay is not None:
        callbacks.append(AveragesWeights(recipe.ema_decay))
    if recipe.gradient_norms:
        callbacks.append(GradientNorms(net))
    if recipe.early_stopping_patience is not None:
        callbacks.append(StopsAgain(monitor, mode=mode, patience=recipe.early_stopping_patience))
    if shows_bar(config):
        callbacks.append(pl.callbacks.TQDMProgressBar(refresh_rate=20))
    loggers = list(user_loggers(config, seed).values())
    for logger in loggers:
        logger.log_hyperparams(flat({k: v for k, v in config.plain().items() if k not in {"tracking", "loggers"}}))
    return pl.Trainer(
        accelerator=device_of(machine),
        devices=machine.devices,
        num_nodes=machine.num_nodes,
        strategy=build_strategy(config, net),
        precision=precision_of(machine),
        max_epochs=recipe.epochs,
        gradient_clip_val=recipe.gradient_clip_norm,
        deterministic="warn" if machine.deterministic else None,
        callbacks=callbacks,
        plugins=build_plugins(machine),
        accumulate_grad_batches=machine.accumulate_grad_batches,
        default_root_dir=work.path,
        logger=loggers or False,
        limit_val_batches=0 if recipe.protocol == "last_epoch" else None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=shows_bar(config),
    )


def fit_to_end(
    trainer: pl.Trainer, module: pl.LightningModule, data: Any, work: WorkFolder, recorder: Recorder
) -> None:
    """Train in a work folder, from the last checkpoint there if there is one.

    Args:
        trainer: of `trainer_of`.
        module: what is trained.
        data: a data module with `start_batch`, see `convatlas.data.module.DataModule`.
        work: the folder.
        recorder: one of the trainer's callbacks.
    """
    resumed = work.last if work.last.exists() else None
    if not work.fitted.exists():
        data.start_batch = batches_done(read_checkpoint(resumed, work.begin_anew)) if resumed else 0
        with user_errors():
            trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
        if trainer.is_global_zero:
            work.fitted.touch()
    elif resumed:  # killed between training and test: the rows are in the last checkpoint
        state = read_checkpoint(resumed, work.begin_anew)
        recorder.load_state_dict(state["callbacks"][recorder.state_key])
    trainer.strategy.barrier("fitted")


def build_tester(machine: TrainerConfig) -> pl.Trainer:
    """Build a trainer that tests a net on one device as the training's test did: precision, layout, determinism."""
    device, precision = device_of(machine), precision_of(machine)
    return pl.Trainer(
        accelerator=device,
        devices=1,
        precision="bf16-mixed" if device == "cpu" and precision == "16-mixed" else precision,
        deterministic="warn" if machine.deterministic else None,
        callbacks=[InvertsImages(), *([ChannelsLast()] if machine.channels_last else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=machine.progress_bar and sys.stdout.isatty(),
        enable_model_summary=False,
    )


def has_bar(config: RunConfig) -> bool:
    """Say whether a progress bar takes the place of a line an epoch: where it is asked for, and there is a terminal."""
    return config.trainer.progress_bar and sys.stdout.isatty()


def shows_bar(config: RunConfig) -> bool:
    """Say whether this training has a bar of its own; seeds side by side share that of their parent process."""
    return has_bar(config) and multiprocessing.parent_process() is None


# ---- what a user adds -----------------------------------------------------------------------------------------------


def user_callbacks(config: RunConfig) -> dict[str, pl.Callback]:
    """Build the callbacks of `config.callbacks`, by name."""
    return {name: _built(section, f"callbacks.{name}", pl.Callback) for name, section in config.callbacks.items()}


def user_loggers(config: RunConfig, seed: int) -> dict[str, Logger]:
    """Build the loggers of `config.loggers`; `{study}`, `{variant}` and `{seed}` in their arguments are filled in."""
    words = {"study": config.study, "variant": config.variant, "seed": seed}
    return {
        name: _built(_filled(section, words, f"loggers.{name}"), f"loggers.{name}", Logger)
        for name, section in config.loggers.items()
    }


def _built(section: Mapping[str, Any], key: str, kind: type) -> Any:
    built = build(section, key)
    if not isinstance(built, kind):
        raise UserError(f"{key}: {section['_target_']} is no {kind.__name__} of Lightning; name another class.")
    return named(built, key)


def _filled(section: Mapping[str, Any], words: Mapping[str, Any], key: str) -> dict[str, Any]:
    try:
        return {k: v.format(**words) if isinstance(v, str) else v for k, v in section.items()}
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{key}: only {{study}}, {{variant}} and {{seed}} are filled in ({error}).") from error
