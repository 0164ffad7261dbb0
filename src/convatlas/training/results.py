"""What a finished seed leaves: its record, predictions and pictures."""

from __future__ import annotations

import math
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from convatlas.core import record
from convatlas.core.accelerators import peak_flops
from convatlas.core.config import RunConfig
from convatlas.core.environment import environment
from convatlas.core.errors import UserError
from convatlas.core.files import full_disk, write_json, write_text, write_yaml
from convatlas.core.folders import written_folder
from convatlas.core.metrics import Direction
from convatlas.core.processes import uses_gpu
from convatlas.core.record import REMEDY, Environment, Metrics, RunRecord, Timing
from convatlas.data.card import Card
from convatlas.data.lightning_module import ModuleData
from convatlas.data.module import DataModule
from convatlas.models.build import build_model
from convatlas.models.costs import costs_of, measure_latency
from convatlas.tasks.base import DIVERGED, DivergedError, Task
from convatlas.training.recorder import Recorder
from convatlas.training.work_folder import WorkFolder

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COUNTED = {"epoch", "step", "lr"}
"""The columns of the history that are no metrics."""


CARD = "data_card.json"
"""In a run's folder: the card of the data that it was trained on, with their classes, mean and standard deviation."""
NET = "net.json"
"""Beside it: what a program needs to use the weights; see `about_net`."""


@dataclass
class Results:
    """Everything a seed's folder will hold beside its checkpoints and its configuration."""

    record: RunRecord
    predictions: pd.DataFrame | None
    figures: Mapping[str, Figure]


def collect_results(
    config: RunConfig,
    task: Task,
    data: DataModule | ModuleData,
    *,
    work: WorkFolder,
    recorder: Recorder,
    test: Mapping[str, float],
    parts: Mapping[str, dict[str, float]],
    test_seconds: float,
    device: torch.device,
) -> Results:
    """Gather the results of a seed after its test. Whatever differs between equal runs (seconds) goes to `timing`.

    `device` is the one that trained; after a test Lightning has put the net back on the CPU.
    """
    from convatlas.tasks.figures import mosaic, picture_channels

    shape = (config.data.in_channels, config.data.image_size, config.data.image_size)
    predictions = task.predictions()
    task.eval()
    run = build_record(
        config,
        task.seed,
        work=work,
        recorder=recorder,
        model=config.about.title,
        fingerprint=data.prepared.card.fingerprint,
        monitor=task.monitor,
        mode=task.monitor_mode,
        test=test,
        parts=parts,
        costs=asdict(costs_of(lambda: build_model(config.model), shape, config.recipe.batch_size)),
        test_seconds=test_seconds,
        images_per_step=min(config.recipe.batch_size, len(data.training_split))
        if isinstance(data, DataModule)
        else None,
        latency_seconds=latency_on(task.net, shape, device, config.trainer.precision),
    )
    figures: Mapping[str, Figure] = {}
    try:
        with recorder.measured("figures"), plain_text():
            figures = task.figures(data.sample_batch(predictions["index"].tolist()), predictions)
            if isinstance(data, DataModule):
                figures = {**figures, "training_batch": mosaic(picture_channels(data.training_sample()))}
    except Exception as error:  # a picture never costs a run
        print(f"No figures can be drawn ({error}); the run is complete without them.", file=sys.stderr)
    run.timing.parts["figures"] = recorder.parts["figures"]
    return Results(run, data.prepared.with_files(predictions, "test"), figures)


def latency_on(net: nn.Module, shape: tuple[int, int, int], device: torch.device, precision: str) -> float:
    """Return the seconds of one image on a device, as the net is written, and leave the net on the CPU.

    A compiled net would be compiled anew for a single image. The net's weights are float32, before and after.
    """
    compiled, net._compiled_call_impl = net._compiled_call_impl, None
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    try:
        with torch.autocast(device.type, dtype=half) if half else nullcontext():
            return measure_latency((net.double() if precision == "64-true" else net).to(device), shape)
    finally:
        net.float().cpu()._compiled_call_impl = compiled


@contextmanager
def plain_text() -> Iterator[None]:
    """Let matplotlib draw what stands between two dollar signs as it stands, and not warn of letters that it lacks."""
    import matplotlib as mpl

    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def build_record(
    config: RunConfig,
    seed: int,
    *,
    work: WorkFolder,
    recorder: Recorder,
    model: str,
    fingerprint: str,
    monitor: str,
    mode: Direction,
    test: Mapping[str, float],
    costs: Mapping[str, Any],
    test_seconds: float,
    parts: Mapping[str, dict[str, float]] | None = None,
    images_per_step: int | None = None,
    latency_seconds: float | None = None,
) -> RunRecord:
    """Put the record of a seed together."""
    best = best_row(recorder.rows, monitor, mode)
    metrics = Metrics(
        study=config.study,
        variant=config.variant,
        seed=seed,
        task=config.data.task,
        model=model,
        data=config.data.name,
        data_fingerprint=fingerprint,
        monitor=monitor,
        monitor_mode=mode,
        epochs=len(recorder.rows),
        best_epoch=int(best["epoch"]),
        best={k: v for k, v in best.items() if k not in COUNTED},
        last={k: v for k, v in recorder.rows[-1].items() if k not in COUNTED},
        test=dict(test),
        parts=dict(parts or {}),
        costs=dict(costs),
    )
    train_seconds = sum(recorder.epoch_seconds)
    rate = recorder.rows[-1]["step"] * images_per_step / train_seconds if images_per_step and train_seconds else None
    gpu = torch.cuda.get_device_name() if uses_gpu(config.trainer.accelerator) else None
    peak = peak_flops(gpu, config.trainer.precision)
    timing = Timing(
        train_seconds=train_seconds,
        epoch_seconds=recorder.epoch_seconds,
        test_seconds=test_seconds,
        latency_seconds=latency_seconds,
        parts=recorder.parts | {"steps": train_seconds - recorder.parts["data"]},
        device=gpu or "cpu",
        images_per_second=rate,
        peak_memory_bytes=recorder.peak_memory,
        mfu=6 * costs["macs"] * rate / (peak * config.trainer.processes) if peak and rate and "macs" in costs else None,
    )
    return RunRecord(
        metrics=metrics,
        timing=timing,
        environment=Environment.model_validate(environment(config)),
        identity=work.identity,
        history=tuple(recorder.rows),
    )


def best_row(rows: Sequence[dict[str, float]], monitor: str, mode: Direction) -> dict[str, float]:
    """Return the row of the best epoch, the first of equals; NaN is the worst, as Lightning's checkpoints have it."""
    sign = 1 if mode == "max" else -1

    def score(row: dict[str, float]) -> float:
        return -math.inf if math.isnan(row[monitor]) else sign * row[monitor]

    return max(rows, key=score)


def check_converged(rows: Sequence[dict[str, float]], monitor: str, mode: Direction) -> None:
    """Check that the validation of the best epoch and of the last gave numbers; one between them was recovered from.

    Raises:
        DivergedError: the loss of one of the two, or the best score, is not finite.
    """
    best = best_row(rows, monitor, mode)
    for row in (best, rows[-1]):
        check_loss(
            row.get("val/loss", row.get("val_loss")), f"validation loss became {{}} in epoch {int(row['epoch'])}"
        )
    if not math.isfinite(best[monitor]):
        raise DivergedError(f"{monitor} was finite in no epoch. {DIVERGED}, or choose another recipe.monitor.")


def check_loss(loss: float | None, words: str) -> None:
    """Check a loss, where there is one.

    Raises:
        DivergedError: it is not finite.
    """
    if loss is not None and not math.isfinite(loss):
        raise DivergedError(f"The {words.format(loss)}. {DIVERGED}.")


def write_results(results: Results, config: RunConfig, card: Card, work: WorkFolder, folder: Path) -> None:
    """Write the folder of a seed under another name, then put it in its place.

    Raises:
        UserError: something that is not of a run lies there.
    """
    with written_folder(folder, "train", "output_dir") as partial:
        (partial / "figures").mkdir()
        write_yaml(partial / "config.yaml", config.plain(), "The whole configuration of this run, as it was trained.")
        if config.data.module is None:
            write_text(partial / CARD, card.to_json())
            write_json(partial / NET, about_net(config, card))
        if results.predictions is not None:
            results.predictions.to_parquet(partial / "predictions.parquet", index=False)
        started = time.perf_counter()
        for name, figure in results.figures.items():
            try:
                with plain_text():
                    figure.savefig(partial / "figures" / f"{name}.png", dpi=110)
            except Exception as error:  # as above
                if full_disk(error) is not None:
                    raise
                print(f"The figure {name} cannot be drawn ({error}); the run is complete without it.", file=sys.stderr)
        results.record.timing.parts["figures"] += time.perf_counter() - started
        results.record.write(partial)
        for checkpoint in (work.best, work.last):
            shutil.copy2(checkpoint, partial / checkpoint.name)


def about_net(config: RunConfig, card: Card) -> dict[str, Any]:
    """Return what a program needs to use a run's weights: classes, input size, mean, deviation, and what they take.

    Exported and served nets take pixels from 0 to 1, and subtract and divide themselves.
    """
    return {**card.for_programs(config.data, config.recipe.test_crop), "weights_take": "(pixels / 255 - mean) / std"}


def add_tracking_seconds(folder: Path, seconds: float) -> None:
    """Add to a finished seed's `timing.json` what MLflow took after the results were written."""
    timing = RunRecord.read(folder).timing
    timing.parts["tracking"] += seconds
    write_json(folder / "timing.json", timing.model_dump())


def read_whole(folder: Path, *, predicts: bool = True) -> RunRecord:
    """Return the record in a seed's folder if all that `write_results` writes there is whole.

    Args:
        folder: of the seed.
        predicts: whether there are predictions; a LightningModule of another package leaves none.

    Raises:
        UserError: a file is missing or broken.
    """
    found = RunRecord.read(folder)
    predictions, checkpoint = folder / "predictions.parquet", folder / "best.ckpt"
    whole = {
        folder / "identity.json": found.identity is not None,
        folder / "history.csv": len(found.history) == found.metrics.epochs,
        folder / "config.yaml": (folder / "config.yaml").is_file(),
        # The last bytes are those of every Parquet file.
        predictions: not predicts or (predictions.is_file() and predictions.read_bytes()[-4:] == b"PAR1"),
        checkpoint: checkpoint.is_file() and zipfile.is_zipfile(checkpoint),
    }
    for path, is_whole in whole.items():
        if not is_whole:
            raise UserError(f"{path} is {'broken' if path.exists() else 'missing'}; {REMEDY}")
    return found


def write_failure(folder: Path, error: str) -> Path:
    """Write, as the folder of a seed, why it has no result, and return the folder."""
    with written_folder(folder, "train", "output_dir") as partial:
        record.write_failure(partial, error)
    return folder
