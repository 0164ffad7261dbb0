"""What a finished seed leaves: metrics, history, predictions, pictures, costs, and how they came about."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.core.config import RunConfig
from convatlas.core.environment import environment
from convatlas.core.files import replace_folder, write_json, write_yaml
from convatlas.data.module import DataModule
from convatlas.models.build import build_model
from convatlas.models.costs import costs_of, measure_latency
from convatlas.tasks.base import Task
from convatlas.training.recorder import Recorder, write_history
from convatlas.training.work_folder import WorkFolder

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass
class Results:
    """Everything a seed's folder will hold beside its checkpoints."""

    metrics: dict[str, Any]
    timing: dict[str, Any]
    history: list[dict[str, float]]
    predictions: pd.DataFrame
    figures: Mapping[str, Figure]
    environment: dict[str, Any]


def collect_results(
    config: RunConfig,
    task: Task,
    data: DataModule,
    *,
    recorder: Recorder,
    test: Mapping[str, float],
    test_seconds: float,
) -> Results:
    """Gather the results of a seed after its test. Whatever differs between equal runs (seconds) goes to `timing`."""
    import pandas as pd

    monitor = config.recipe.monitor or task.monitor
    channels, size = config.data.in_channels, config.data.image_size
    costs = costs_of(lambda: build_model(config.model), (channels, size, size), config.recipe.batch_size)
    best = max(recorder.rows, key=lambda row: row[monitor])  # the first of equals, as the checkpoint callback has it
    predictions = pd.DataFrame(task.test_rows)
    task.eval()
    return Results(
        metrics={
            "study": config.study,
            "variant": config.variant,
            "seed": task.seed,
            "task": config.data.task,
            "model": config.about.title,
            "data": config.data.name,
            "data_fingerprint": data.prepared.card.fingerprint,
            "monitor": monitor,
            "epochs": len(recorder.rows),
            "best_epoch": int(best["epoch"]),
            "best": {k: v for k, v in best.items() if "/" in k},
            "last": {k: v for k, v in recorder.rows[-1].items() if "/" in k},
            "test": dict(test),
            "costs": asdict(costs),
        },
        timing={
            "train_seconds": sum(recorder.epoch_seconds),
            "epoch_seconds": recorder.epoch_seconds,
            "test_seconds": test_seconds,
            "latency_seconds": measure_latency(task.net, (channels, size, size)),
        },
        history=recorder.rows,
        predictions=predictions,
        figures=task.figures(data.sample_batch(predictions["index"].tolist()), predictions),
        environment=environment(config),
    )


def write_results(results: Results, config: RunConfig, work: WorkFolder, folder: Path) -> None:
    """Write the folder of a seed under another name, then put it in its place."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "figures").mkdir(parents=True)
    write_yaml(partial / "config.yaml", config.plain(), "The whole configuration of this run, as it was trained.")
    write_json(partial / "identity.json", work.identity)
    write_json(partial / "environment.json", results.environment)
    write_json(partial / "metrics.json", results.metrics)
    write_json(partial / "timing.json", results.timing)
    write_history(partial / "history.csv", results.history)
    results.predictions.to_parquet(partial / "predictions.parquet", index=False)
    for name, figure in results.figures.items():
        figure.savefig(partial / "figures" / f"{name}.png", dpi=110)
    for checkpoint in (work.best, work.last):
        shutil.copy2(checkpoint, partial / checkpoint.name)
    replace_folder(partial, folder)


def write_failure(folder: Path, error: str) -> Path:
    """Write, as the folder of a seed, why it has no result, and return the folder."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_json(partial / "failure.json", {"error": error})
    replace_folder(partial, folder)
    return folder
