"""`python -m convatlas.evaluate run=runs/overview/lenet5/seed=0 [tta=ten_crop]`: a trained net's metrics once more.

The run's own files stay as they are; `output_dir` writes `evaluation.json` and `predictions.parquet` elsewhere.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from convatlas.cli import read_options, run
from convatlas.config import Section
from convatlas.errors import UserError
from convatlas.files import write_json


class Options(Section):
    """What the command line may say."""

    run: Path
    checkpoint: Path | None = None
    """Weights to take instead of the run's best.ckpt."""
    part: str | None = None
    """A part of the net that works alone, such as column_3 of a FractalNet."""
    split: Literal["test", "validation"] = "test"
    tta: Literal["none", "flip", "ten_crop"] = "none"
    """Test-time augmentation, for classification."""
    output_dir: Path | None = None
    format: Literal["text", "json"] = "text"


def main() -> None:
    """Evaluate a run and print its metrics."""
    options = read_options(Options, sys.argv[1:])
    metrics = evaluate(options)
    if options.format == "json":
        print(json.dumps(metrics))
    else:
        views = "" if options.tta == "none" else f", {options.tta}"
        part = "" if options.part is None else f", {options.part}"
        print(f"{options.run}{part}, {options.split} split{views}")
        for name, value in metrics.items():
            print(f"{name:<24}{value:>10.4f}")


def evaluate(options: Options) -> dict[str, float]:
    """Evaluate a run on one of its data's splits."""
    import pandas as pd
    import pytorch_lightning as pl
    import torch

    from convatlas.data.module import DataModule
    from convatlas.models.build import part_of
    from convatlas.models.layers.test_time import Flip, TenCrop
    from convatlas.tasks import new_task
    from convatlas.training.run import quieten_libraries
    from convatlas.training.trained import load_run

    quieten_libraries()
    trained = load_run(options.run, options.checkpoint)
    config = trained.config
    if options.tta != "none" and config.data.task != "classification":
        raise UserError(
            f"tta={options.tta} is for classification, and {options.run} is {config.data.task}; leave it out."
        )
    torch.set_num_threads(config.trainer.threads)
    prepared = trained.prepared()
    net = {"none": lambda n: n, "flip": Flip, "ten_crop": TenCrop}[options.tta](part_of(trained.net, options.part))
    task = new_task(net, config, list(prepared.card.classes), seed=0)
    machine = config.trainer
    data = DataModule(prepared, config.data, config.recipe, workers=machine.workers, limit_batches=None, seed=0)
    trainer = pl.Trainer(
        accelerator="cpu" if machine.accelerator == "cpu" else "auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data.trainer = trainer
    loader = data.test_dataloader() if options.split == "test" else data.val_dataloader()
    trainer.test(task, loader, verbose=False)
    metrics: dict[str, Any] = {
        k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")
    }
    if options.output_dir is not None:
        how = {"split": options.split, "part": options.part, "tta": options.tta}
        write_json(options.output_dir / "evaluation.json", how | metrics)
        pd.DataFrame(task.test_rows).to_parquet(options.output_dir / "predictions.parquet", index=False)
    return metrics


if __name__ == "__main__":
    run(main)
