"""One run: every seed of one variant, trained, tested once with the best epoch's weights, and written down."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from convatlas.core.config import RunConfig
from convatlas.core.digests import digest
from convatlas.core.errors import UserError
from convatlas.core.folders import check_replaceable, tidy_up
from convatlas.core.processes import keep_freed_memory, rank, rank_zero_first, stop
from convatlas.core.record import RunRecord
from convatlas.core.source_code import run_code
from convatlas.data.lightning_module import ModuleData, open_data
from convatlas.data.module import DataModule
from convatlas.data.prepared import PreparedData
from convatlas.models.build import build_model
from convatlas.models.interfaces import HasParts
from convatlas.models.weights import load_net, read_checkpoint
from convatlas.tasks import new_task
from convatlas.tasks.base import DIVERGED, DivergedError, Task
from convatlas.tasks.views import with_views
from convatlas.tracking.runs import end_status
from convatlas.tracking.tracker import SeedTracker, VariantTracker, open_tracker
from convatlas.training import foreign
from convatlas.training.accumulation import InPieces
from convatlas.training.dry_run import dry_run
from convatlas.training.machine import with_scaled_rate
from convatlas.training.recorder import Recorder, idle_since, now
from convatlas.training.results import (
    add_tracking_seconds,
    best_row,
    check_converged,
    check_loss,
    collect_results,
    read_whole,
    write_failure,
    write_results,
)
from convatlas.training.side_by_side import SideBySide, seeds_at_once
from convatlas.training.strategies import prepare_net
from convatlas.training.trainer import build_trainer, fit_to_end, has_bar
from convatlas.training.transfer import load_initial_weights, weights_digest
from convatlas.training.work_folder import WorkFolder, difference


def train(config: RunConfig, *, strict: bool) -> list[Path]:
    """Train every seed of a run and return their folders.

    Args:
        config: the run.
        strict: refuse to touch a folder that holds a training with other settings, instead of starting it afresh, and
            raise where a seed diverges. In the pipeline that is the seed's result, as it would diverge every time: its
            folder says so, and the other seeds go on.

    Raises:
        UserError: something that the user can correct; nothing half-written is left.
    """
    signal.signal(signal.SIGTERM, stop)
    quieten_libraries()
    keep_freed_memory()
    prepared = open_data(config.data)
    at_once = seeds_at_once(config)
    torch.set_num_threads(config.trainer.threads if at_once == 1 else 1)
    if foreign.is_foreign(config):
        foreign.dry_run(config, prepared)
    else:
        dry_run(build_model(config.model), config, prepared)

    def train_one(seed: int, tracker: VariantTracker) -> Path:
        torch.set_num_threads(config.trainer.threads)
        try:
            return train_seed(config, prepared, seed, tracker, strict=strict)
        except DivergedError as error:
            if strict:
                raise
            folder = config.output_dir / f"seed={seed}"
            if rank() == 0:
                write_failure(folder, str(error))
                print(f"{config.variant} seed {seed} failed: {error}")
            return folder
        finally:
            idle_since[0] = time.perf_counter()

    if at_once > 1:
        bar = f"{config.variant}, {len(config.seeds)} seeds" if has_bar(config) else None
        with SideBySide(train_one, config.seeds, at_once, bar, config.recipe.epochs) as processes:
            if not strict:  # a store that cannot be used stops no training of the pipeline
                processes.start()
            with open_tracker(config, prepared.card, strict=strict) as tracker:
                return processes.train(tracker)
    with open_tracker(config, prepared.card, strict=strict) as tracker:
        return [train_one(seed, tracker) for seed in config.seeds]


def train_seed(config: RunConfig, prepared: PreparedData, seed: int, tracker: VariantTracker, *, strict: bool) -> Path:
    """Train, test and write down one seed; goes on where a killed process stopped, and skips what is finished."""
    folder = config.output_dir / f"seed={seed}"
    identity = run_identity(config, seed, prepared.card.fingerprint)
    work = WorkFolder((config.work_dir or config.output_dir / ".work") / f"seed={seed}", identity, strict)
    with rank_zero_first(config.trainer.accelerator):
        if _is_finished(folder, identity, config, strict=strict):
            if rank() == 0:
                _complete(folder, work, tracker)
            return folder
        if rank() == 0:
            check_replaceable(folder, "train", "output_dir")
            check_apart(work.path, folder)
            work.open(overwrite=config.overwrite)
    seed_tracker = tracker.start_seed(seed, work.path)
    fit_and_test = foreign.fit_and_test if foreign.is_foreign(config) else _fit_and_test
    try:
        fit_and_test(config, prepared, seed, work=work, tracker=seed_tracker, folder=folder)
        written = time.perf_counter()
        if rank() == 0:
            seed_tracker.log_results(folder)
    except BaseException as error:
        seed_tracker.end(end_status(type(error)))
        useless = isinstance(error, DivergedError) or (isinstance(error, UserError) and not work.last.exists())
        if useless and rank() == 0:
            work.remove()  # going on would diverge again, or begin anew
        work.close()
        raise
    seed_tracker.end("FINISHED")
    if rank() == 0:
        add_tracking_seconds(folder, time.perf_counter() - written)
        work.remove()
    return folder


def check_apart(work: Path, folder: Path) -> None:
    """Check that an unfinished training does not lie in the folder that its results replace.

    Raises:
        UserError: it does, or the results lie in it.
    """
    one, other = work.resolve(), folder.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise UserError(f"work_dir would put {work} and output_dir {folder}; choose a work_dir outside of it.")


def _complete(folder: Path, work: WorkFolder, tracker: VariantTracker) -> None:
    """Do what a kill after the results were written left undone: the end of the log, the removal of what is left."""
    tidy_up(folder, "train")
    is_left = work.is_left()
    if is_left:
        try:
            work.open(overwrite=False)
        except UserError:  # another process is doing it
            return
    tracker.complete(folder)
    if is_left:
        work.remove()
    else:
        work.tidy_up()


def _fit_and_test(
    config: RunConfig, prepared: PreparedData, seed: int, *, work: WorkFolder, tracker: SeedTracker, folder: Path
) -> None:
    fitted = fit(config, prepared, seed, work, tracker.log_epoch)
    task, data, trainer = fitted.task, fitted.data, fitted.trainer
    if config.trainer.strategy == "fsdp":  # each process has a part of the net; it is tested whole
        whole = _with_whole_nets(config)
        task = build_task(whole, list(prepared.card.classes), seed)
        trainer = build_trainer(whole, task, seed, work, fitted.recorder)
    load_net(task.net, work.best, work.begin_anew)
    check_best(work.best, fitted.recorder, task)
    started = now()
    with fitted.recorder.measured("test"):
        test = _tested(task, data, trainer)
        check_loss(test.get("loss"), "test loss became {}")
        test_seconds = now() - started
        parts = test_parts(task, data, trainer)
    task.float()  # what `trainer.precision=64-true` made wide
    if trainer.is_global_zero:
        results = collect_results(
            config,
            task,
            data,
            work=work,
            recorder=fitted.recorder,
            test=test,
            parts=parts,
            test_seconds=test_seconds,
            device=trainer.strategy.root_device,
        )
        write_results(results, config, prepared.card, work, folder)
    trainer.strategy.barrier("written")


def check_best(checkpoint: Path, recorder: Recorder, task: Task) -> None:
    """Check that the weights to be tested are those of the best epoch, and finite.

    Raises:
        UserError: they are of another.
        DivergedError: they are not finite, which a detector's validation does not tell.
    """
    saved, best = read_checkpoint(checkpoint)["epoch"] + 1, best_row(recorder.rows, task.monitor, task.monitor_mode)
    if saved != best["epoch"]:
        raise UserError(
            f"{checkpoint} is of epoch {saved}, and the best is {int(best['epoch'])}; train again with overwrite=true."
        )
    for name, weights in task.net.named_parameters():
        if not weights.isfinite().all():
            raise DivergedError(f"The weights {name} became infinite or nan in epoch {saved}. {DIVERGED}.")


class Fitted(NamedTuple):
    """A training that has come to its end, the test not yet made."""

    task: Task
    data: DataModule | ModuleData
    trainer: pl.Trainer
    recorder: Recorder


def fit(
    config: RunConfig,
    prepared: PreparedData,
    seed: int,
    work: WorkFolder,
    on_epoch: Callable[[dict[str, float]], None],
) -> Fitted:
    """Train one seed in its work folder, from the last checkpoint there if there is one; `on_epoch` gets each row.

    Raises:
        DivergedError: the loss or the score is no finite number.
    """
    task = build_task(config, list(prepared.card.classes), seed)
    data = _build_data(config, prepared, seed)
    label = f"{config.variant} seed {seed}"
    recorder = Recorder(label, config.recipe.epochs, on_epoch, show=not has_bar(config))
    trainer = build_trainer(config, task, seed, work, recorder)
    fit_to_end(trainer, task, data, work, recorder)
    check_converged(recorder.rows, task.monitor, task.monitor_mode)
    return Fitted(task, data, trainer, recorder)


def _build_data(config: RunConfig, prepared: PreparedData, seed: int) -> DataModule | ModuleData:
    machine = config.trainer
    if config.data.module is not None:
        return ModuleData(prepared, config.data, seed, machine.limit_batches)
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


def build_task(config: RunConfig, classes: list[str], seed: int) -> Task:
    """Build the net from its seed or the weights it begins with, and the task around it."""
    pl.seed_everything(seed, verbose=False)
    net = build_model(config.model)
    for line in load_initial_weights(net, config, seed):
        if rank() == 0:
            print(line)
    return new_task(prepare_net(net, config.trainer), with_scaled_rate(config), classes, seed)


def test_parts(task: Task, data: DataModule | ModuleData, trainer: pl.Trainer) -> dict[str, dict[str, float]]:
    """Test each part of a net that works alone, such as one column of a FractalNet, and the net on `recipe.test_views`.

    All share the net's weights. What a part predicts for each image joins the table of the whole net's test.
    """
    parts = task.net.parts() if isinstance(task.net, HasParts) else {}
    for view in task.config.recipe.test_views:
        parts[view] = with_views(task.net, view, task.config, f"recipe.test_views={view}")
    found = {}
    for name, part in parts.items():
        alone = new_task(part, task.config, task.classes, task.seed)
        found[name] = _tested(alone, data, trainer)
        if "prediction" in alone.tested:
            task.tested[f"prediction_{name}"] = alone.tested["prediction"]
    return found


def _tested(task: Task, data: DataModule | ModuleData, trainer: pl.Trainer) -> dict[str, float]:
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
    if config.overwrite or not RunRecord.is_in(folder):
        return False
    try:
        before = read_whole(folder, predicts=not foreign.is_foreign(config)).identity or {}
    except UserError as error:
        if strict:
            raise
        if rank() == 0:
            print(f"{error} It is trained again now.")
        return False
    if before == identity:
        if rank() == 0:
            print(f"{folder} is finished already; pass overwrite=true to train it again.")
        return True
    if strict:
        raise UserError(
            f"{folder} holds a finished run with other settings ({difference(before, identity)}). "
            "Choose another output_dir, or pass overwrite=true."
        )
    return False


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
