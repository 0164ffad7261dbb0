"""One run: every seed of one variant, trained, tested once with the best epoch's weights, and written down."""

from __future__ import annotations

import logging
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging
from torch import nn

from convatlas.core.config import RunConfig
from convatlas.core.digests import digest
from convatlas.core.errors import UserError
from convatlas.core.files import read_json
from convatlas.core.processes import rank, rank_zero_first
from convatlas.core.source_code import run_code
from convatlas.data.module import DataModule, batches_done
from convatlas.data.prepared import PreparedData
from convatlas.models.build import build_model
from convatlas.models.interfaces import HasParts
from convatlas.models.weights import load_net, read_checkpoint
from convatlas.tasks import new_task
from convatlas.tasks.activation_maps import class_activation_maps
from convatlas.tasks.base import DivergedError, Task
from convatlas.tasks.views import with_views
from convatlas.tracking.tracker import SeedTracker, VariantTracker, end_status, open_tracker
from convatlas.training.accumulation import InPieces
from convatlas.training.checkpoints import checkpoint_callbacks
from convatlas.training.machine import refuse_unsupported, with_scaled_rate
from convatlas.training.net_callbacks import FollowsNet, GradientNorms, InvertsImages
from convatlas.training.recorder import Recorder
from convatlas.training.results import collect_results, write_failure, write_results
from convatlas.training.strategies import ChannelsLast, build_plugins, build_strategy, prepare_net
from convatlas.training.transfer import begin_from, refuse_unfit_weights, weights_digest
from convatlas.training.work_folder import WorkFolder, difference


def train(config: RunConfig, *, strict: bool) -> list[Path]:
    """Train every seed of a run and return their folders.

    Args:
        config: the run.
        strict: refuse to touch a folder that holds a training with other settings, instead of starting it afresh, and
            raise where a seed diverges. In the pipeline that is the seed's result, as it would diverge every time: its
            folder says so, and the other seeds go on.

    Raises:
        UserError: something that the person can mend; nothing half-written is left.
    """
    signal.signal(signal.SIGTERM, stop)
    quieten_libraries()
    torch.set_num_threads(config.trainer.threads)
    prepared = PreparedData.open_for(config.data)
    DataModule(prepared, config.data, config.recipe, workers=0, limit_batches=None, seed=0)  # refuses what does not fit
    net = build_model(config.model)
    refuse_unsupported(config, net)
    try_out(net, config)
    refuse_unfit_weights(config)
    with open_tracker(config, prepared.card) as tracker:
        folders = []
        for seed in config.seeds:
            try:
                folders.append(train_seed(config, prepared, seed, tracker, strict=strict))
            except DivergedError as error:
                if strict:
                    raise
                if rank() == 0:
                    folders.append(write_failure(config.output_dir / f"seed={seed}", str(error)))
                    print(f"{config.variant} seed {seed} failed: {error}")
        return folders


def train_seed(config: RunConfig, prepared: PreparedData, seed: int, tracker: VariantTracker, *, strict: bool) -> Path:
    """Train, test and write down one seed; goes on where a killed process stopped, and skips what is finished."""
    folder = config.output_dir / f"seed={seed}"
    identity = run_identity(config, seed, prepared.card.fingerprint)
    work = WorkFolder((config.work_dir or config.output_dir / ".work") / f"seed={seed}", identity, strict)
    with rank_zero_first(config.trainer.accelerator):
        if _is_finished(folder, identity, config, strict=strict):
            return folder
        if rank() == 0:
            work.open(overwrite=config.overwrite)
    seed_tracker = tracker.start_seed(seed, work.path)
    try:
        _fit_and_test(config, prepared, seed, work=work, tracker=seed_tracker, folder=folder)
    except BaseException as error:
        seed_tracker.end(end_status(type(error)))
        if isinstance(error, DivergedError) and rank() == 0:
            work.remove()  # going on would only diverge again
        work.close()
        raise
    seed_tracker.end("FINISHED")
    if rank() == 0:
        work.remove()
    return folder


def _fit_and_test(
    config: RunConfig, prepared: PreparedData, seed: int, *, work: WorkFolder, tracker: SeedTracker, folder: Path
) -> None:
    fitted = fit(config, prepared, seed, work, tracker.log_epoch)
    task, data, trainer = fitted.task, fitted.data, fitted.trainer
    if config.trainer.strategy == "fsdp":  # each process has a part of the net; it is tested whole
        whole = _with_whole_nets(config)
        task = build_task(whole, list(prepared.card.classes), seed)
        trainer = build_trainer(whole, task, work, fitted.recorder)
    load_net(task.net, work.best)
    started = time.perf_counter()
    test = _tested(task, data, trainer)
    test_seconds = time.perf_counter() - started
    parts = test_parts(task, data, trainer)
    task.float()  # what `trainer.precision=64-true` made wide
    if trainer.is_global_zero:
        results = collect_results(config, task, data, recorder=fitted.recorder, test=test, test_seconds=test_seconds)
        results.metrics["parts"] = parts
        write_results(results, config, work, folder)
        tracker.log_results(folder)
    trainer.strategy.barrier("written")


class Fitted(NamedTuple):
    """A training that has come to its end, the test not yet made."""

    task: Task
    data: DataModule
    trainer: pl.Trainer
    recorder: Recorder


def fit(
    config: RunConfig,
    prepared: PreparedData,
    seed: int,
    work: WorkFolder,
    on_epoch: Callable[[dict[str, float]], None],
) -> Fitted:
    """Train one seed in its work folder, from the last checkpoint there if there is one; `on_epoch` gets each row."""
    task = build_task(config, list(prepared.card.classes), seed)
    data = _build_data(config, prepared, seed)
    label = f"{config.variant} seed {seed}"
    recorder = Recorder(label, config.recipe.epochs, on_epoch, show=not _shows_bar(config))
    trainer = build_trainer(config, task, work, recorder)
    resumed = work.last if work.last.exists() else None
    if not work.fitted.exists():
        data.start_batch = batches_done(read_checkpoint(resumed)) if resumed else 0
        trainer.fit(task, datamodule=data, ckpt_path=resumed, weights_only=True)
        if trainer.is_global_zero:
            work.fitted.touch()
    elif resumed:  # killed between training and test: the rows are in the last checkpoint
        recorder.load_state_dict(read_checkpoint(resumed)["callbacks"][recorder.state_key])
    trainer.strategy.barrier("fitted")
    return Fitted(task, data, trainer, recorder)


def _build_data(config: RunConfig, prepared: PreparedData, seed: int) -> DataModule:
    machine = config.trainer
    return InPieces(
        prepared,
        config.data,
        config.recipe,
        workers=machine.workers,
        limit_batches=machine.limit_batches,
        seed=seed,
        resident=machine.resident,
        pieces=machine.accumulate_grad_batches,
    )


def _with_whole_nets(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"trainer": config.trainer.model_copy(update={"strategy": "ddp"})})


def try_out(net: nn.Module, config: RunConfig) -> None:
    """Show the net one image of each size, so that one it cannot take is told before anything is written.

    Raises:
        UserError: the net refuses images of `data.image_size`, or of another size that it is to be trained on.
    """
    try:
        show(net.eval(), config.data.in_channels, config.data.image_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    for size in config.recipe.augmentation.image_sizes:
        if size != config.data.image_size:
            try_out_size(net, config, size)
    for view in config.recipe.test_views:
        with_views(net, view, config, f"recipe.test_views={view}")
    if config.recipe.activation_maps:
        size = config.data.image_size
        class_activation_maps(net, torch.zeros(1, config.data.in_channels, size, size))


def show(net: nn.Module, channels: int, size: int) -> None:
    """Run the net on one black image."""
    with torch.inference_mode():
        net(torch.zeros(1, channels, size, size))


def try_out_size(net: nn.Module, config: RunConfig, size: int) -> None:
    """Show the net one image of a size other than the data's; a detector takes it in training, with its objects.

    Raises:
        UserError: the net does not take it.
    """
    channels = config.data.in_channels
    try:
        if config.data.task == "detection":
            nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
            with torch.no_grad():
                net.train()([torch.zeros(channels, size, size)] * 2, [nothing] * 2)
        else:
            show(net.eval(), channels, size)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"recipe.augmentation.image_sizes: this net takes no images of {size} pixels ({error}); leave {size} out."
        ) from error


def build_task(config: RunConfig, classes: list[str], seed: int) -> Task:
    """Build the net from its seed or the weights it begins with, and the task around it."""
    pl.seed_everything(seed, verbose=False)
    net = build_model(config.model)
    for line in begin_from(net, config, seed):
        if rank() == 0:
            print(line)
    return new_task(prepare_net(net, config.trainer), with_scaled_rate(config), classes, seed)


def build_trainer(config: RunConfig, task: Task, work: WorkFolder, recorder: Recorder) -> pl.Trainer:
    """Build Lightning's trainer with this run's callbacks."""
    machine, recipe = config.trainer, config.recipe
    monitor = recipe.monitor or task.monitor
    callbacks: list[pl.Callback] = [
        FollowsNet(),
        InvertsImages(),
        recorder,
        *checkpoint_callbacks(work.path, monitor, machine.checkpoint_every_n_steps),
    ]
    if recipe.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=recipe.ema_decay))
    if recipe.gradient_norms:
        callbacks.append(GradientNorms(task.net))
    if recipe.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(monitor, mode="max", patience=recipe.early_stopping_patience))
    if _shows_bar(config):
        callbacks.append(pl.callbacks.TQDMProgressBar(refresh_rate=20))
    if machine.channels_last:
        callbacks.append(ChannelsLast())
    return pl.Trainer(
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.num_nodes,
        strategy=build_strategy(config, task.net),
        precision=machine.precision,
        max_epochs=recipe.epochs,
        gradient_clip_val=recipe.gradient_clip_norm,
        deterministic="warn" if machine.deterministic else None,
        callbacks=callbacks,
        plugins=build_plugins(machine),
        accumulate_grad_batches=machine.accumulate_grad_batches,
        default_root_dir=work.path,
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=_shows_bar(config),
    )


def test_parts(task: Task, data: DataModule, trainer: pl.Trainer) -> dict[str, dict[str, float]]:
    """Test each part of a net that works alone, such as one column of a FractalNet, and the net on `recipe.test_views`.

    All share the net's weights.
    """
    parts = task.net.parts() if isinstance(task.net, HasParts) else {}
    for view in task.config.recipe.test_views:
        parts[view] = with_views(task.net, view, task.config, f"recipe.test_views={view}")
    return {
        name: _tested(new_task(part, task.config, task.classes, task.seed), data, trainer)
        for name, part in parts.items()
    }


def _tested(task: Task, data: DataModule, trainer: pl.Trainer) -> dict[str, float]:
    trainer.test(task, datamodule=data, verbose=False)
    tested = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
    return {name.removeprefix("test/"): value for name, value in tested.items()}


def run_identity(config: RunConfig, seed: int, data_fingerprint: str) -> dict[str, Any]:
    """Return what decides the bits of a run's result: configuration, seed, data, code, libraries, first weights."""
    code = run_code(config)
    identity = {
        "config": config.identity,
        "seed": seed,
        "data": data_fingerprint,
        "code": digest(code.files),
        "packages": code.packages,
    }
    weights = weights_digest(config, seed)
    return identity if weights is None else identity | {"weights": weights}


def _is_finished(folder: Path, identity: dict[str, Any], config: RunConfig, *, strict: bool) -> bool:
    if not (folder / "metrics.json").exists():
        return False
    before = read_json(folder / "identity.json", "delete the folder and train again.")
    if before == identity and not config.overwrite:
        if rank() == 0:
            print(f"{folder} is finished already; pass overwrite=true to train it again.")
        return True
    if strict and not config.overwrite:
        raise UserError(
            f"{folder} holds a finished run with other settings ({difference(before, identity)}). "
            "Choose another output_dir, or pass overwrite=true."
        )
    return False


def _shows_bar(config: RunConfig) -> bool:
    return config.trainer.progress_bar and sys.stdout.isatty()


def quieten_libraries() -> None:
    """Leave out what libraries say on every run and nobody needs to act on."""
    for name in ("pytorch_lightning", "lightning.pytorch", "mlflow.system_metrics", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r"Checkpoint directory .* exists and is not empty",  # the folder of the training that is being resumed
        r".*LeafSpec.* is deprecated",
        r"The '\w+_dataloader' does not have many workers",  # whole batches come from a memory-mapped array
        r"You're using the WeightAveraging callback with a model that overrides",  # FSDP does, and refuses averages
        r".*recommended to use `self\.log\(.*sync_dist=True\)`",  # torchmetrics has put the processes together already
    ):
        warnings.filterwarnings("ignore", message=message)


def stop(signum: int, _frame: Any) -> None:
    """End in an orderly way when asked to: the run is marked KILLED and can be resumed."""
    raise SystemExit(128 + signum)
